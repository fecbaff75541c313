"""Unlearning: climb the loss of rows that should not have been learnt, and stop before more is lost."""

from __future__ import annotations

from torch import Tensor, nn

from buckler.data import Rows
from buckler.poisoning._dynamics import plain
from buckler.poisoning._look import accuracy
from buckler.train import constant, fit


def ascend(model: nn.Module, rows: Rows, *, epochs: int, rate: float, batch: int = 128, seed: int = 0) -> nn.Module:
    """Climb the cross-entropy of `rows` in place, an epoch at a time, until they are answered at chance."""
    chance = 1.0 / (int(rows[1].max()) + 1)
    for epoch in range(epochs):
        fit(model, rows, loss=climb, epochs=1, batch=batch, rate=constant(rate), decay=0.0, seed=seed + epoch)
        if accuracy(model, rows) <= chance:
            break
    return model


def climb(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Minus the cross-entropy of every row: `(B,)`."""
    return -plain(model(x), y)
