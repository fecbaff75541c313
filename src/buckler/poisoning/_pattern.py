"""Patterns that cover a whole image, drawn by a seed: what blended triggers are made of."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

Kind = Literal["noise", "blobs"]
COARSE = 4
"""Pixels of the coarse image along each side that `blobs` are made of."""


def pattern(kind: Kind, channels: int, height: int, width: int, seed: int) -> Tensor:
    """A picture `(C, H, W)` in [0, 1] drawn by `seed` alone.

    `noise` is uniform, pixel by pixel; `blobs` are smooth: a few coarse pixels enlarged, each channel from 0 to 1.
    """
    generator = torch.Generator().manual_seed(seed)
    if kind == "noise":
        return torch.rand(channels, height, width, generator=generator)
    if kind != "blobs":
        raise ValueError(f"expected a pattern out of noise, blobs, got {kind!r}")
    coarse = torch.rand(1, channels, COARSE, COARSE, generator=generator)
    smooth = F.interpolate(coarse, size=(height, width), mode="bicubic", align_corners=True)[0]
    low, high = smooth.amin((1, 2), keepdim=True), smooth.amax((1, 2), keepdim=True)
    return (smooth - low) / (high - low).clamp_min(1e-12)
