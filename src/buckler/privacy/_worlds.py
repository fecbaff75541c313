"""Models trained on rows of which a class has one share or another: the material of property inference."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

SPARE = 0.8
"""The share of the rows at hand that a model learns from at most, so that no two learn from the same."""


@dataclass(frozen=True, eq=False)
class Worlds:
    """What S models answer to Q rows, log-probabilities `(S, Q, K)`, and which of the `shares` of class `label` was in
    the rows of each, `(S,)`."""

    answers: Tensor
    which: Tensor
    label: int
    shares: tuple[float, ...]

    def fit(self, x: Tensor, label: int, shares: tuple[float, ...]) -> None:
        """A `ValueError` unless these are of this question, and were asked about rows as many as `x` `(Q, ...)`."""
        if (self.label, self.shares) != (label, shares):
            raise ValueError(
                f"expected models of class {label} with shares {shares}, got {self.label} and {self.shares}"
            )
        if self.answers.shape[1] != len(x) or len(self.which) != len(self.answers):
            raise ValueError(f"expected answers to these {len(x)} rows, got {tuple(self.answers.shape)}")


def mixed(y: Tensor, label: int, shares: tuple[float, ...], models: int, seed: int) -> tuple[Tensor, Tensor]:
    """Who learns from what, `(models, N)`, and which of `shares` it has of class `label`, `(models,)`, in turns.

    All learn from equally many rows, drawn by `seed` out of those labelled `y` `(N,)`. A `ValueError` for shares that
    are no shares, too few models, or too few rows.
    """
    own, others = (y == label).nonzero().squeeze(1), (y != label).nonzero().squeeze(1)
    if len(shares) < 2 or not all(0 <= share < 1 for share in shares) or models < len(shares):
        raise ValueError(f"expected shares of 0 or more and below 1, a model for each, got {shares} and {models}")
    room = [SPARE * len(own) / max(shares)] if max(shares) else []
    size = int(min(*room, SPARE * len(others) / (1 - min(shares)), len(y)))
    if size < 10:
        raise ValueError(f"expected rows enough for {shares} of class {label}, got {len(own)} of {len(y)}")
    draw = torch.Generator().manual_seed(seed)
    held = torch.zeros(models, len(y), dtype=torch.bool)
    which = torch.arange(models) % len(shares)
    for model, kind in enumerate(which.tolist()):
        many = round(shares[kind] * size)
        held[model, own[torch.randperm(len(own), generator=draw)[:many]]] = True
        held[model, others[torch.randperm(len(others), generator=draw)[: size - many]]] = True
    return held, which
