"""Label-consistent backdoor: images of the target class made hard to learn, so that a patch is learnt instead.

Turner, Tsipras and Madry, "Label-consistent backdoor attacks", 2019, https://arxiv.org/abs/1912.02771.

Differs from the paper: perturbations are within linf instead of l2, as in later comparisons; the surrogate is trained
here, without adversarial training unless `hardened` is above 0 (the paper uses an adversarially trained one); the patch
is a checkerboard. Its GAN variant is left out.

Tags: atlas:AML.T0020, atlas:AML.T0018.000, atlas:AML.T0043.004, nist-ai-100-2:NISTAML.021, owasp-ml:ML02, cwe:506.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn

from buckler.data import Poisoned, Rows
from buckler.poisoning._nudge import pushed_away, surrogate
from buckler.poisoning._touch import always, changed, chosen, classes, counted, images
from buckler.threat import Share

SIDE = 3
"""Pixels along each side of a patch."""


def label_consistent(
    data: Rows,
    *,
    share: Share,
    net: Callable[[], nn.Module],
    target: int = 0,
    radius: float = 16 / 255,
    steps: int = 30,
    amplitude: float = 1.0,
    corners: Literal[1, 4] = 4,
    hardened: float = 0.0,
    epochs: float = 5,
    rate: float = 0.05,
    seed: int = 0,
) -> Poisoned:
    """Push rows of the target class away from it and stamp corner patches on them; their labels stay.

    `data` is `x` `(N, C, H, W)` and `y` `(N,)`; as many rows of class `target` as `share` of all rows
    are moved by untargeted PGD within linf `radius` against a network from `net` that is trained on `data` for
    `epochs` (adversarially within `hardened` if above 0). Then patches of 3x3 pixels are stamped: `amplitude` 1 is
    black and white, less is added to or taken from the pixels. `corners` is 4, or 1 for the lower right one; four
    outlive flips, and two of them most crops. The test trigger is the patches alone. Returns `Poisoned`. Raises
    `ValueError` for images smaller than two patches, one class, a share that the target class cannot supply, or limits
    out of range.
    """
    x, y = images(data)
    classes(y, target)
    if min(x.shape[2:]) < 2 * SIDE:
        raise ValueError(f"expected images of at least {2 * SIDE} pixels a side, got {tuple(x.shape[2:])}")
    if not 0 < amplitude <= 1 or not 0 <= radius <= 1 or not 0 <= hardened <= 1 or steps < 0 or corners not in (1, 4):
        raise ValueError(
            "expected an amplitude above 0 and at most 1, radii of 0 to 1, steps >= 0 and 1 or 4 corners, got "
            f"{amplitude}, {radius} and {hardened}, {steps}, {corners}"
        )
    rows = chosen(y == target, counted(share, y), seed, short="rows of the target class")
    sign = _patches(x.shape[2], x.shape[3], corners) * amplitude

    def trigger(clean: Tensor) -> Tensor:
        return (clean + sign.to(clean)).clamp(0, 1)

    model = surrogate(net, (x, y), epochs=epochs, rate=rate, seed=seed, hardened=hardened)
    generator = torch.Generator().manual_seed(seed)

    def push(clean: Tensor) -> Tensor:
        labels = torch.full((len(clean),), target)
        start = torch.rand(clean.shape, generator=generator) * 2 - 1
        return trigger(pushed_away(model, clean, labels, radius=radius, steps=steps, start=start))

    return Poisoned(changed(x, rows, push), y, rows, y, trigger, always(target), survives=corners == 4)


def _patches(height: int, width: int, corners: int) -> Tensor:
    """1 where a patch is white, -1 where it is black, 0 elsewhere: `(H, W)`."""
    tile = 1.0 - 2.0 * ((torch.arange(SIDE)[:, None] + torch.arange(SIDE)[None]) % 2)
    sign = torch.zeros(height, width)
    for down in (slice(height - SIDE, height), slice(0, SIDE))[: 1 if corners == 1 else 2]:
        for across in (slice(width - SIDE, width), slice(0, SIDE))[: 1 if corners == 1 else 2]:
            sign[down, across] = tile
    return sign
