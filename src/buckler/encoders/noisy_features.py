"""Noisy features: noise that the image and a key decide, so that asking again does not tell more.

Liu, Jia, Liu and Gong, "StolenEncoder: stealing pre-trained encoders in self-supervised learning", CCS 2022,
https://arxiv.org/abs/2201.05889, where noise is tried as a defence and found wanting.

Differs from the paper: the noise of an image is the same whenever it is asked about; it is as large as the features of
the image are, times a share.

No guarantee: over many images noise is 0 in the mean, and that is what a thief learns; and an image that is changed by
one grey level has other noise.

Tags: atlas:AML.M0002, nist-ai-100-2:NISTAML.031, owasp-ml:ML05.
"""

from __future__ import annotations

import math
from functools import partial

from torch import Tensor, nn

from buckler.dice import Dice
from buckler.encoders._revealing import Revealing
from buckler.kinds import Defended


def noisy_features(model: nn.Module, *, scale: float = 0.5, seed: int = 0) -> Defended:
    """The encoder `model` with normal noise on each row's features, `scale` times as large as their root mean square.

    `seed` is the key. A `ValueError` for a scale below 0.
    """
    if not 0 <= scale < math.inf:
        raise ValueError(f"expected a scale of 0 or more, got {scale}")
    return Revealing(model, partial(_noisy, scale=scale, seed=seed))


def _noisy(features: Tensor, x: Tensor, scale: float, seed: int) -> Tensor:
    size = features.square().mean(1, keepdim=True).sqrt()
    return features + scale * size * Dice(x, seed).normal(features.shape[1]).to(features)
