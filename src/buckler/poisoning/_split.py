"""Ranking rows by how well a model that was kept from their labels agrees with them, and splitting them so."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from buckler.data import Rows
from buckler.kinds import Suspicion
from buckler.poisoning._dynamics import Watched
from buckler.poisoning._isolate import highest
from buckler.poisoning._look import logits as answers


def symmetric(logits: Tensor, y: Tensor, *, alpha: float = 0.1, beta: float = 1.0, floor: float = 1e-4) -> Tensor:
    """Symmetric cross-entropy (Wang et al., ICCV 2019, https://arxiv.org/abs/1908.06112) per row, `(B,)`.

    `alpha` times cross-entropy plus `beta` times reverse cross-entropy, whose log of zero is the log of `floor`.
    """
    own = logits.softmax(1).gather(1, y[:, None]).squeeze(1)
    reverse = -torch.tensor(floor).log().item() * (1 - own)
    return alpha * F.cross_entropy(logits, y, reduction="none") + beta * reverse


def lowest(score: Tensor, share: float) -> Tensor:
    """The `share` of rows with the lowest score: `(N,)` booleans; a `ValueError` for none of them, or all."""
    many = int(share * len(score))
    if not 1 <= many < len(score):
        raise ValueError(f"expected a share that is 1 to {len(score) - 1} rows, got {share} of {len(score)} rows")
    return highest(-score, many)


def lowest_of_each(score: Tensor, y: Tensor, many: int) -> Tensor:
    """Of every class the `many` rows with the lowest score, or as many as it has: `(N,)` booleans."""
    chosen = torch.zeros(len(y), dtype=torch.bool)
    for label in y.unique():
        rows = (y == label).nonzero().squeeze(1)
        chosen[rows[score[rows].topk(min(many, len(rows)), largest=False).indices]] = True
    return chosen


class Splits:
    """What a model in training says of all rows, pass by pass, and which of them were trusted then."""

    def __init__(self, model: nn.Module, data: Rows) -> None:
        self._model, self._data = model, data
        self._watched = Watched(data[1])
        self._trusted: list[Tensor] = []
        self.score = torch.zeros(len(data[1]))
        """By what the rows were split last: higher is worse."""

    def disagreement(self) -> Tensor:
        """The symmetric cross-entropy of every row as the model is now, evaluating: `(N,)`."""
        y = self._data[1]
        logits = answers(self._model, self._data).float()
        self._watched.note(torch.arange(len(y)), logits, y)
        return symmetric(logits, y)

    def keep(self, score: Tensor, trusted: Tensor) -> Tensor:
        """Remember a split and what it was made by; returns `trusted` as it is."""
        self.score = score
        self._trusted.append(trusted)
        return trusted

    def suspicion(self) -> Suspicion:
        """Rows that were not trusted last, and whose label is not what the model says now."""
        said = answers(self._model, self._data).argmax(1)
        return Suspicion(self.score, ~self._trusted[-1] & (said != self._data[1]))

    @property
    def dynamics(self) -> dict[str, Tensor]:
        """`loss`, `confidence`, `agreement` and `trusted`, each `(passes, N)`."""
        return {**self._watched.record, "trusted": torch.stack(self._trusted).float()}
