"""Loss threshold: what a model learnt from has a lower loss.

Yeom, Giacomelli, Fredrikson and Jha, "Privacy risk in machine learning: analyzing the connection to overfitting", CSF
2018, https://arxiv.org/abs/1709.01604.

Differs from the paper: the score is returned and no threshold is chosen; theirs is the mean loss of the training rows.
It needs no model of the adversary's own, and tells overfitted models; rows that are easy for any model hide those that
were learnt by heart, which is why it finds next to nothing where few false alarms are allowed.

Tags: atlas:AML.T0024.000, nist-ai-100-2:NISTAML.033, owasp-ml:ML04.
"""

from __future__ import annotations

from torch import Tensor

from buckler.kinds import Membership
from buckler.privacy._shadows import answers_of, confidence
from buckler.target import ScoreOracle


def loss_threshold(oracle: ScoreOracle, x: Tensor, y: Tensor) -> Membership:
    """Score rows by minus their cross-entropy, as it is or scaled: both order rows alike.

    `x` `(B, ...)` in [0, 1], `y` `(B,)`; one query per row. Returns log p_y - log(1 - p_y), float64 `(B,)`.
    """
    return confidence(answers_of(oracle, x, 1), y.cpu()).squeeze(1)
