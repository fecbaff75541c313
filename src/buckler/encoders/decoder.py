"""Decoder: the input whose features these are, by a network that learnt the way back from the adversary's own images.

Dosovitskiy and Brox, "Inverting visual representations with convolutional networks", CVPR 2016,
https://arxiv.org/abs/1506.02753; Song and Raghunathan, "Information leakage in embedding models", CCS 2020,
https://arxiv.org/abs/2004.00053.

Only answers are needed: the adversary asks for the features of images of the same kind as the victim's, once each.

Differs from the paper: two linear layers, and one convolution that smooths, as suits small images and hundreds of rows.

Tags: atlas:AML.T0024.001, atlas:AML.T0040, nist-ai-100-2:NISTAML.032.
"""

from __future__ import annotations

import math
from typing import cast

import torch
from torch import Tensor, nn

from buckler.data import floats
from buckler.embedding import embedded
from buckler.kinds import Reconstructed
from buckler.target import FeatureOracle
from buckler.train import fit, started


def decoder(
    oracle: FeatureOracle,
    features: Tensor,
    *,
    images: Tensor,
    inner: int = 512,
    epochs: float = 100,
    rate: float = 2e-3,
    seed: int = 0,
) -> Reconstructed:
    """Rebuild the inputs of `features` `(B, D)` by a network that learnt from `images` `(N, C, H, W)` in [0, 1] and
    what `oracle` answers to them.

    It has `inner` units, and learns for `epochs` at `rate`, drawn by `seed`, to come near in squared difference.
    Returns `(B, C, H, W)`. Raises `ValueError` for features of another width than the oracle's, or fewer than two
    images.
    """
    if images.ndim != 4 or len(images) < 2:
        raise ValueError(f"expected two images of one's own or more, (N, C, H, W), got {tuple(images.shape)}")
    known = embedded(oracle, images)
    if features.ndim != 2 or features.shape[1] != known.shape[1]:
        raise ValueError(f"expected features (B, {known.shape[1]}), as the oracle gives them, got {features.shape}")
    shape = tuple(images.shape[1:])
    made = cast(_Decoder, started(lambda: _Decoder(known, shape, inner), seed))
    fit(
        made,
        (known, torch.arange(len(known))),
        loss=lambda model, x, rows: (model(x) - floats(images.cpu()[rows])).square().flatten(1).mean(1),
        epochs=epochs,
        batch=64,
        rate=rate,
        decay=0,
        optimizer="adam",
        seed=seed,
    )
    with torch.no_grad():
        return Reconstructed(made(features.cpu()).to(features.device))


class _Decoder(nn.Module):
    """Features, brought to mean 0 and deviation 1 as they were in training, to images of `shape` in [0, 1]."""

    def __init__(self, known: Tensor, shape: tuple[int, ...], inner: int) -> None:
        super().__init__()
        self.mean = nn.Buffer(known.mean(0))
        self.deviation = nn.Buffer(known.std(0, correction=0).clamp_min(1e-6))
        self.wide = nn.Sequential(
            nn.Linear(known.shape[1], inner), nn.ReLU(), nn.Linear(inner, math.prod(shape)), nn.Unflatten(1, shape)
        )
        self.smoothed = nn.Sequential(nn.ReLU(), nn.Conv2d(shape[0], shape[0], 3, padding=1))

    def forward(self, features: Tensor) -> Tensor:
        rough = self.wide((features - self.mean) / self.deviation)
        return (rough + self.smoothed(rough)).sigmoid()
