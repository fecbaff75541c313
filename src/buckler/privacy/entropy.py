"""Entropy: what a model learnt from it answers more surely.

Song and Mittal, "Systematic evaluation of privacy risks of machine learning models", USENIX Security 2021,
https://arxiv.org/abs/2003.10595.

Differs from the paper: the score is returned and no threshold is chosen; theirs is one per class, from a shadow model,
which is `class_threshold`.
`modified=False` is the plain entropy of Salem et al. (NDSS 2019), which does not look at labels and takes sure mistakes
for members.

Tags: atlas:AML.T0024.000, nist-ai-100-2:NISTAML.033, owasp-ml:ML04.
"""

from __future__ import annotations

from torch import Tensor

from buckler.kinds import Membership
from buckler.privacy._entropy import modified_entropy
from buckler.privacy._shadows import answers_of
from buckler.target import ScoreOracle


def entropy(oracle: ScoreOracle, x: Tensor, y: Tensor, *, modified: bool = True) -> Membership:
    """Score rows by minus the entropy of their scores, in nats.

    `x` `(B, ...)` in [0, 1], `y` `(B,)`; one query per row. The modified entropy is -(1 - p_y) log p_y less the sum of
    p_k log(1 - p_k) over the other classes: 0 for a sure right answer, unbounded for a sure wrong one. Float64 `(B,)`.
    """
    log = answers_of(oracle, x, 1).squeeze(1).double().log_softmax(1)
    return -modified_entropy(log, y.cpu()) if modified else (log.exp() * log).sum(1)
