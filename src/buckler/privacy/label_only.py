"""Label-only: what a model learnt from keeps its label under more noise.

Choquette-Choo, Tramer, Carlini and Papernot, "Label-only membership inference attacks", ICML 2021,
https://arxiv.org/abs/2007.14321.

The random-noise form, which stands in for the distance to the decision boundary at a small share of its queries.
Differs from the paper: noise of many sizes is tried, not one size that is tuned on a shadow model, and the score is the
share of answers that are the label. It sees hundreds of values at best, so it says nothing of very few false alarms.

Tags: atlas:AML.T0024.000, nist-ai-100-2:NISTAML.033, owasp-ml:ML04.
"""

from __future__ import annotations

import torch
from torch import Tensor

from buckler.dice import Dice
from buckler.kinds import Membership
from buckler.target import LabelOracle


def label_only(
    oracle: LabelOracle, x: Tensor, y: Tensor, *, queries: int = 100, largest: float = 0.5, seed: int = 0
) -> Membership:
    """Score rows by the share of `queries` answers that are their label, under noise of growing size.

    `x` `(B, ...)` in [0, 1], `y` `(B,)`. The first question is the row itself; the others have normal noise whose
    standard deviation grows evenly up to `largest`, clipped to [0, 1]. A row that is answered wrong without noise
    scores below all others. Returns float64 `(B,)`. Raises `ValueError` for no queries, or noise of no size.
    """
    if queries < 1 or not largest > 0:
        raise ValueError(f"expected a query or more and a largest noise above 0, got {queries} and {largest}")
    dice, y = Dice(x, seed), y.cpu()
    right = oracle(x).cpu() == y
    kept = right.double()
    for query in range(1, queries):
        size = largest * query / (queries - 1)
        noise = dice.normal(*x.shape[1:]).to(x)
        kept += (oracle((x + size * noise).clamp(0, 1)).cpu() == y).double()
    return torch.where(right, kept, kept - queries) / queries
