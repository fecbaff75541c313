"""Spectral signatures: poisoned rows lie far out along the first singular direction of their class's features.

Tran, Li and Madry, "Spectral signatures in backdoor attacks", NeurIPS 2018, https://arxiv.org/abs/1811.00636.

Differs from the paper: by default the rows to flag, one and a half times the number expected to be poisoned, are the
highest scores of all classes together; with `each_class` they are taken from every class, as published, which flags
half of a clean data set of ten classes if 5 % of all rows are expected to be poisoned. Either way at most half of a
class is flagged. No guarantee: poison that is half of its class or more, or that lies where clean rows do, is missed.

Tags: atlas:AML.T0020, nist-ai-100-2:NISTAML.023, owasp-ml:ML02, cwe:506.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from buckler.data import Rows, raw
from buckler.kinds import Suspicion
from buckler.poisoning._groups import by_class, principal
from buckler.poisoning._isolate import highest
from buckler.poisoning._look import features
from buckler.poisoning._touch import classes

SURPLUS = 1.5


def spectral(model: nn.Module, data: Rows, *, expected: float = 0.05, each_class: bool = False) -> Suspicion:
    """Score the rows of `data`, on which `model` was trained, by their squared distance along the first singular
    direction of their class.

    `data` is `x` `(N, ...)` and `y` `(N,)`; the features are the inputs of the model's last linear layer, centred per
    class. `expected` is the share of all rows taken to be poisoned: 1.5 times as many are flagged, of all rows or, with
    `each_class`, of every class. Raises `ValueError` for one class only, a share that is no share or no row, or a model
    without a linear layer.
    """
    x, y = raw(data)
    classes(y)
    many = round(SURPLUS * expected * len(y))
    if not 0 < expected < 1 or many < 1:
        raise ValueError(f"expected a share of poisoned rows between 0 and 1 and of at least one row, got {expected}")
    seen = features(model, (x, y))
    score = torch.zeros(len(y))
    able = torch.zeros(len(y), dtype=torch.bool)
    flagged = torch.zeros(len(y), dtype=torch.bool)
    for _, rows in by_class(y):
        score[rows] = _far(seen[rows])
        upper = highest(score[rows], len(rows) // 2)
        able[rows] = upper
        flagged[rows] = highest(score[rows], min(many, len(rows) // 2))
    if not each_class:
        flagged = highest(score.masked_fill(~able, -torch.inf), min(many, int(able.sum())))
    return Suspicion(score, flagged)


def _far(seen: Tensor) -> Tensor:
    """The squared projection of every row `(n, D)` on the first right singular vector of the centred rows: `(n,)`."""
    along = principal(seen, 1)
    return along.square().sum(1).float()
