"""Class thresholds: how far is an answer above the level that best tells members of its class, in shadow models?

Song and Mittal, "Systematic evaluation of privacy risks of machine learning models", USENIX Security 2021,
https://arxiv.org/abs/2003.10595.

With shadows behind the same guard as the target the levels are fitted to guarded answers, which is how the paper breaks
MemGuard. Differs from the paper: the distance to the level is returned, so that other shares of false alarms can be
looked at; and the levels are those of several shadow models together.

Tags: atlas:AML.T0024.000, nist-ai-100-2:NISTAML.033, owasp-ml:ML04.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from buckler.kinds import Membership
from buckler.privacy._entropy import modified_entropy
from buckler.privacy._measure import threshold
from buckler.privacy._shadows import Shadows, answers_of, confidence
from buckler.target import ScoreOracle

Look = Literal["entropy", "confidence"]


def class_threshold(
    oracle: ScoreOracle, x: Tensor, y: Tensor, *, shadows: Shadows, look: Look = "entropy"
) -> Membership:
    """Score rows by minus their modified entropy, or their scaled confidence, less the level of their class.

    `x` `(B, ...)` in [0, 1] and `y` `(B,)` are the rows that the `shadows` were asked about, in their order; the first
    view of each is used. Returns float64 `(B,)`. Raises `ValueError` for other rows.
    """
    shadows.fit(x)
    y = y.cpu()
    known = torch.stack([_seen(answers[:, :1], shadows.labels, look) for answers in shadows.answers])
    score = _seen(answers_of(oracle, x, 1), y, look)
    for label in y.unique():
        same = shadows.labels == label
        own = known[:, same]
        level = threshold(own.flatten(), shadows.held[:, same].flatten())
        score[y == label] -= min(max(level, float(own.min())), float(own.max()))
    return score


def _seen(answers: Tensor, y: Tensor, look: Look) -> Tensor:
    """What is looked at, of log-probabilities `(N, 1, K)`: `(N,)`, higher for a member."""
    if look == "confidence":
        return confidence(answers, y).squeeze(1)
    return -modified_entropy(answers.squeeze(1).double().log_softmax(1), y)
