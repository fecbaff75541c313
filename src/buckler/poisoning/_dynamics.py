"""Training that remembers: what the loop saw of every row, epoch by epoch, at no further cost.

The rows that training passes through the network anyway are written down: their loss, the probability of their label,
and whether they were answered with it.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

LossOfLogits = Callable[[Tensor, Tensor], Tensor]
"""Logits `(B, K)` and labels `(B,)` to a loss per row `(B,)`."""


class Watched:
    """A loss for the one loop that is given row numbers as labels, and remembers what it saw of every row.

    `record` maps `loss`, `confidence` and `agreement` to tensors `(epochs, N)`; NaN where a row was not seen. An epoch
    ends when a row comes again.
    """

    def __init__(self, y: Tensor, loss: LossOfLogits | None = None) -> None:
        self._y = y
        self._loss = loss if loss is not None else plain
        self._epochs: list[dict[str, Tensor]] = []

    def __call__(self, model: nn.Module, x: Tensor, rows: Tensor) -> Tensor:
        y = self._y.to(rows.device)[rows]
        logits = model(x)
        self.note(rows.cpu(), logits.detach().float().cpu(), y.cpu())
        return self._loss(logits, y)

    def note(self, rows: Tensor, logits: Tensor, y: Tensor) -> None:
        """Write down what was answered to `rows`, all on the CPU."""
        if not self._epochs or bool(self._epochs[-1]["loss"][rows].isfinite().any()):
            blank = torch.full((len(self._y),), torch.nan)
            self._epochs.append({name: blank.clone() for name in ("loss", "confidence", "agreement")})
        said = logits.log_softmax(1)
        own = said.gather(1, y[:, None]).squeeze(1)
        seen = {"loss": -own, "confidence": own.exp(), "agreement": (logits.argmax(1) == y).float()}
        for name, values in seen.items():
            self._epochs[-1][name][rows] = values

    @property
    def record(self) -> dict[str, Tensor]:
        names = self._epochs[0] if self._epochs else ()
        return {name: torch.stack([epoch[name] for epoch in self._epochs]) for name in names}


def plain(logits: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(logits, y, reduction="none")


def gradient_ascent(gamma: float) -> LossOfLogits:
    """Local gradient ascent (Li et al., NeurIPS 2021): below `gamma` the loss is climbed instead, so that rows that
    are learnt at once stay at a low loss and the others do not join them."""

    def loss(logits: Tensor, y: Tensor) -> Tensor:
        value = plain(logits, y)
        return torch.sign(value.detach() - gamma) * value

    return loss


def flooded(level: float) -> LossOfLogits:
    """Flooding (Ishida et al., ICML 2020): the mean loss of a batch hovers at `level`; every row is given that mean."""

    def loss(logits: Tensor, y: Tensor) -> Tensor:
        return ((plain(logits, y).mean() - level).abs() + level).expand(len(y))

    return loss


def numbered(x: Tensor) -> tuple[Tensor, Tensor]:
    """Training data whose labels are row numbers."""
    return x, torch.arange(len(x))
