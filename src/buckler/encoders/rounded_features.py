"""Rounded features: every feature with few digits, as a part of the length of all.

Liu, Jia, Liu and Gong, "StolenEncoder: stealing pre-trained encoders in self-supervised learning", CCS 2022,
https://arxiv.org/abs/2201.05889, where it is tried as a defence and found wanting.

Differs from the paper: features are rounded as parts of their row's length, which is given back afterwards, so that
digits mean the same for every encoder.

No guarantee: what is rounded away from one image is not from the next, and a thief learns the mean of both.

Tags: atlas:AML.M0002, nist-ai-100-2:NISTAML.031, owasp-ml:ML05.
"""

from __future__ import annotations

from functools import partial

from torch import Tensor, nn

from buckler.encoders._revealing import Revealing
from buckler.kinds import Defended


def rounded_features(model: nn.Module, *, digits: int = 1) -> Defended:
    """The encoder `model` with each row's features, divided by their norm, rounded to `digits` decimal digits, 1 to 6;
    a row of which nothing would be left keeps its largest feature. Other digits are a `ValueError`."""
    if not 1 <= digits <= 6:
        raise ValueError(f"expected 1 to 6 digits, got {digits}")
    return Revealing(model, partial(_rounded, digits=digits))


def _rounded(features: Tensor, _: Tensor, digits: int) -> Tensor:
    length = features.norm(dim=1, keepdim=True).clamp_min(1e-12)
    parts = features / length
    left = (parts * 10**digits).round() / 10**digits
    largest = parts.abs().argmax(1, keepdim=True)
    nothing = (left == 0).all(1, keepdim=True)
    return length * left.scatter(1, largest, left.gather(1, largest).where(~nothing, parts.gather(1, largest)))
