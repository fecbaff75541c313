"""Rounding: scores with few digits tell a thief less.

Tramer, Zhang, Juels, Reiter and Ristenpart, "Stealing machine learning models via prediction APIs", USENIX Security
2016, https://arxiv.org/abs/1609.02943, section 7.

Differs from the paper: what is rounded is divided by its sum again; the label stays the model's where rounding makes
scores equal.

No guarantee: labels are as they were, and a thief who learns from labels loses nothing.

Tags: atlas:AML.M0002, nist-ai-100-2:NISTAML.031, owasp-ml:ML05.
"""

from __future__ import annotations

from functools import partial

from torch import Tensor, nn

from buckler.kinds import Defended
from buckler.theft._answering import Answering, first_kept


def rounding(model: nn.Module, *, digits: int = 1) -> Defended:
    """`model` with scores of `digits` decimal digits, 1 to 6; labels are as they were. Else a `ValueError`."""
    if not 1 <= digits <= 6:
        raise ValueError(f"expected 1 to 6 digits, got {digits}")
    return Answering(model, partial(_rounded, digits=digits))


def _rounded(scores: Tensor, digits: int) -> Tensor:
    return first_kept((scores * 10**digits).round() / 10**digits, scores)
