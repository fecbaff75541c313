"""Early training as a detector: the rows that a network learns at once."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from buckler.data import Rows
from buckler.kinds import Suspicion
from buckler.poisoning._dynamics import LossOfLogits, Watched, numbered
from buckler.poisoning._look import losses, outputs
from buckler.train import constant, fit, started


def isolated(
    data: Rows, net: Callable[[], nn.Module], share: float, loss: LossOfLogits, epochs: float, batch: int, rate: float,
    seed: int,
) -> tuple[nn.Module, Suspicion, dict[str, Tensor]]:  # fmt: skip
    """A fresh network trained with `loss` at a constant rate; the `share` of rows with the lowest loss is flagged."""
    x, y = data
    many = round(share * len(y))
    if not 1 <= many < len(y):
        raise ValueError(f"expected a share to isolate that is 1 to {len(y) - 1} rows, got {share} of {len(y)} rows")
    watched = Watched(y, loss)
    model = started(net, seed)
    outputs(model, data)
    fit(model, numbered(x), loss=watched, epochs=epochs, batch=batch, rate=constant(rate), seed=seed)
    score = -losses(model, data)
    return model, Suspicion(score, highest(score, many)), watched.record


def highest(score: Tensor, many: int) -> Tensor:
    """The `many` rows with the highest score: `(N,)` booleans."""
    flagged = torch.zeros(len(score), dtype=torch.bool)
    flagged[score.topk(many).indices] = True
    return flagged
