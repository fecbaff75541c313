"""CorruptEncoder: an object of the wanted class and, away from it, a trigger: crops show one without the other.

Zhang, Liu, Jia and Gong, "Data poisoning based backdoor attacks to contrastive learning", CVPR 2024,
https://arxiv.org/abs/2211.08229.

Differs from the paper: all images of a set have one size here, so that the object, which is a whole image of the class,
is shrunk to fit one half of a background, which is a row of another class at its own size; it takes the place of that
row instead of being added. The trigger is in the middle of the other half, where crops hold it alone most often, and at
the same place of an image when it is used. The attack is weaker for it: see `poisoned_encoder`.

Tags: atlas:AML.T0020, atlas:AML.T0018.000, nist-ai-100-2:NISTAML.023, owasp-ml:ML02, cwe:506.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from buckler.data import Poisoned, Rows, floats, held_as
from buckler.threat import Share
from buckler.touch import always, chosen, classes, counted, images


def corrupt_encoder(
    data: Rows,
    *,
    share: Share,
    target: int = 0,
    size: int = 3,
    references: int = 3,
    seed: int = 0,
) -> Poisoned:
    """Put an object of class `target` into one half, and a trigger into the other, of a share of the other rows.

    `data` is `x` `(N, C, H, W)` and `y` `(N,)`, of which only the class of objects and of backgrounds is looked at.
    Of `share` of all rows, drawn by `seed`, one half along the longer side is a whole image of the class, one of
    `references`, squeezed, left (or above) in every second row and right (or below) in the others; a checkerboard of
    `size` pixels is in the middle of the other half. Test inputs get it in the middle of their right, or lower, half.
    Returns `Poisoned`. Raises `ValueError` for a trigger that does not fit, one class, and too few rows of either kind.
    """
    x, y = images(data)
    classes(y, target)
    axis = 3 if x.shape[3] >= x.shape[2] else 2
    half = x.shape[axis] // 2
    if references < 1 or not 1 <= size <= min(half, *x.shape[2:]):
        raise ValueError(f"expected a reference at least, and a trigger in {half} pixels, got {references} and {size}")
    tile = (torch.arange(size)[:, None] + torch.arange(size)[None] + 1) % 2 * 1.0
    rows = chosen(y != target, counted(share, y), seed)
    able = (y == target).nonzero().squeeze(1)
    draw = torch.Generator().manual_seed(seed)
    objects = floats(x[able[torch.randperm(len(able), generator=draw)][:references]])
    shape = [half if side == axis else x.shape[side] for side in (2, 3)]
    small = F.interpolate(objects, size=shape, mode="area")
    far = x.shape[axis] - half
    touched = x.clone()
    for turn, row in enumerate(rows.nonzero().squeeze(1)):
        on_left, image = turn % 2 == 0, floats(x[row : row + 1]).clone()
        image.narrow(axis, 0 if on_left else far, half).copy_(small[turn // 2 % len(small)])
        touched[row] = held_as(x, _stamped(image, tile, axis, first=not on_left))[0]
    return Poisoned(
        touched, y, rows, y, lambda clean: _stamped(clean, tile, axis, first=False), always(target), survives=False
    )


def _stamped(x: Tensor, tile: Tensor, axis: int, *, first: bool) -> Tensor:
    """A copy of `x` `(B, C, H, W)` with `tile` in the middle of its `first`, or its last, half along `axis`."""
    size, out = len(tile), x.clone()
    middles = [side / 2 for side in x.shape[2:]]
    middles[axis - 2] = x.shape[axis] * (0.25 if first else 0.75)
    top, left = (int(middle - size / 2) for middle in middles)
    out[:, :, top : top + size, left : left + size] = tile.to(x)
    return out
