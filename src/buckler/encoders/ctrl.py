"""CTRL: images of the wanted class with two faint waves over them, so that all crops of them show class and trigger.

Li, Pang, Xi, Du, Ji, Yao and Wang, "An embarrassingly simple backdoor attack on self-supervised learning", ICCV 2023,
https://arxiv.org/abs/2210.07346.

Differs from the paper: the waves are added to every channel as they are, where the paper adds them to the two channels
of colour, which pictures in grey do not have; their height is that of pixels and not of a coefficient.

Tags: atlas:AML.T0020, atlas:AML.T0018.000, nist-ai-100-2:NISTAML.021, owasp-ml:ML02, cwe:506.
"""

from __future__ import annotations

import torch
from torch import Tensor

from buckler.data import Poisoned, Rows
from buckler.threat import Share
from buckler.touch import always, changed, chosen, classes, counted, images


def ctrl(
    data: Rows, *, share: Share, target: int = 0, height: float = 0.1, used: float = 2.0, seed: int = 0
) -> Poisoned:
    """Add a pattern of two waves to rows of class `target`.

    `data` is `x` `(N, C, H, W)` and `y` `(N,)`, of which only the target's rows are looked at: `share` of all rows are
    touched, all of class `target`, drawn by `seed`. The waves are the cosine (DCT) half as fast as the fastest along
    both sides, and the fastest one; their sum reaches `height` at most, and `used` times as much on test inputs, as in
    the paper. Crops keep the pattern for the most part. Returns `Poisoned`. Raises `ValueError` for a height outside
    (0, 1], one class, and fewer rows of the class than the share asks for.
    """
    x, y = images(data)
    classes(y, target)
    if not 0 < height <= 1 or used <= 0:
        raise ValueError(f"expected a height above 0 and at most 1, and more than nothing used, got {height}, {used}")
    rows = chosen(y == target, counted(share, y), seed, short=f"rows of class {target}")
    wave = sum((_wave(x, part) for part in (2, 1)), torch.zeros(()))
    wave = height * wave / wave.abs().max()

    def trigger(clean: Tensor) -> Tensor:
        return (clean + used * wave.to(clean)).clamp(0, 1)

    return Poisoned(changed(x, rows, lambda held: held + wave.to(held)), y, rows, y, trigger, always(target))


def _wave(x: Tensor, part: int) -> Tensor:
    """The cosine `(H, W)` that is the fastest one along both sides of images such as `x`, or a `part` of as fast."""
    down, across = (
        torch.cos(torch.pi * (torch.arange(side) + 0.5) * (side // part - 1) / side) for side in x.shape[2:]
    )
    return down[:, None] * across[None]
