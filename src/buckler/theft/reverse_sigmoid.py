"""Reverse sigmoid: noise that depends on the answer makes different answers look alike.

Lee, Edwards, Molloy and Su, "Defending against neural network model stealing attacks using deceptive perturbations",
Deep Learning and Security Workshop (S&P) 2019, https://arxiv.org/abs/1806.00054.

No guarantee: labels hardly change, and a thief who learns from labels loses nothing. Where a model hesitates between
several classes, the label can change.

Tags: atlas:AML.M0002, nist-ai-100-2:NISTAML.031, owasp-ml:ML05.
"""

from __future__ import annotations

from functools import partial

from torch import Tensor, nn

from buckler.kinds import Defended
from buckler.theft._answering import Answering


def reverse_sigmoid(model: nn.Module, *, beta: float = 0.9, gamma: float = 0.2) -> Defended:
    """`model` with every score y less beta (sigmoid(gamma log(y / (1 - y))) - 1/2), divided by the sum of all.

    `beta` in [0, 1] is how much is taken, `gamma` above 0 how steeply. A `ValueError` for others.
    """
    if not 0 <= beta <= 1 or gamma <= 0:
        raise ValueError(f"expected beta in [0, 1] and gamma above 0, got {beta} and {gamma}")
    return Answering(model, partial(_deceived, beta=beta, gamma=gamma))


def _deceived(scores: Tensor, beta: float, gamma: float) -> Tensor:
    return (scores - beta * ((gamma * scores.logit(1e-7)).sigmoid() - 0.5)).clamp_min(0)
