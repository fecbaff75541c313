"""Entropy: what a model learnt from it answers more surely.

Song and Mittal, "Systematic evaluation of privacy risks of machine learning models", USENIX Security 2021,
https://arxiv.org/abs/2003.10595.

Differs from the paper: the score is returned and no threshold is chosen; theirs is one per class, from a shadow model.
`modified=False` is the plain entropy of Salem et al. (NDSS 2019), which does not look at labels and takes sure mistakes
for members.

Tags: atlas:AML.T0024.000, nist-ai-100-2:NISTAML.033, owasp-ml:ML04.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from buckler.kinds import Membership
from buckler.privacy._shadows import answers_of
from buckler.target import ScoreOracle


def entropy(oracle: ScoreOracle, x: Tensor, y: Tensor, *, modified: bool = True) -> Membership:
    """Score rows by minus the entropy of their scores, in nats.

    `x` `(B, ...)` in [0, 1], `y` `(B,)`; one query per row. The modified entropy is -(1 - p_y) log p_y less the sum of
    p_k log(1 - p_k) over the other classes: 0 for a sure right answer, unbounded for a sure wrong one. Float64 `(B,)`.
    """
    log = answers_of(oracle, x, 1).squeeze(1).double().log_softmax(1)
    if not modified:
        return (log.exp() * log).sum(1)
    # log(1 - p) from the other classes, summed: exact where p is nearly 1
    own = F.one_hot(y.cpu(), log.shape[1]).bool()
    rest = torch.stack([_without(log, k) for k in range(log.shape[1])], 1)
    return torch.where(own, rest.exp() * log, log.exp() * rest).sum(1)


def _without(log: Tensor, k: int) -> Tensor:
    """The log-probability of any class but `k`: `(B,)`."""
    return torch.cat([log[:, :k], log[:, k + 1 :]], 1).logsumexp(1)
