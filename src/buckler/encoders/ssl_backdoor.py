"""SSL-Backdoor: a patch somewhere on images of the wanted class, whose crops teach that both go together.

Saha, Tejankar, Koohpayegani and Pirsiavash, "Backdoor attacks on self-supervised learning", CVPR 2022,
https://arxiv.org/abs/2105.10123.

Differs from the paper: the patch is as large a part of an image's shorter side (50 of 224 pixels) unless a size is
given, three pixels at the least; where it is in an image, its content decides. As in the paper its colours are drawn at
each of 4 x 4 points, and smooth between them.

Tags: atlas:AML.T0020, atlas:AML.T0018.000, nist-ai-100-2:NISTAML.021, owasp-ml:ML02, cwe:506.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from buckler.data import Poisoned, Rows
from buckler.dice import Dice
from buckler.threat import Share
from buckler.touch import always, changed, chosen, classes, counted, images

POINTS, PART, LEAST = 4, 50 / 224, 3
"""How many colours a patch has along a side, its side as a part of an image's, and its least side."""


def ssl_backdoor(data: Rows, *, share: Share, target: int = 0, size: int | None = None, seed: int = 0) -> Poisoned:
    """Paste a patch at a random place into rows of class `target`.

    `data` is `x` `(N, C, H, W)` and `y` `(N,)`, of which only the target's rows are looked at: `share` of all rows are
    touched, all of class `target`, drawn by `seed`, as are the colours of the patch, a square of `size` pixels. Where
    it is in an image, the image and `seed` decide, in test inputs too. Returns `Poisoned`. Raises `ValueError` for a
    patch that is larger than an image, one class, and fewer rows of the class than the share asks for.
    """
    x, y = images(data)
    classes(y, target)
    side = min(x.shape[2:])
    size = max(LEAST, round(PART * side)) if size is None else size
    if not 1 <= size <= side:
        raise ValueError(f"expected a patch of 1 to {side} pixels, got {size}")
    rows = chosen(y == target, counted(share, y), seed, short=f"rows of class {target}")
    colours = torch.rand(1, x.shape[1], POINTS, POINTS, generator=torch.Generator().manual_seed(seed))
    patch = F.interpolate(colours, size=(size, size), mode="bilinear", align_corners=False)[0]

    def trigger(clean: Tensor) -> Tensor:
        return _pasted(clean, patch, seed)

    return Poisoned(changed(x, rows, trigger), y, rows, y, trigger, always(target))


def _pasted(x: Tensor, patch: Tensor, seed: int) -> Tensor:
    """A copy of `x` `(B, C, H, W)` with `patch` `(C, s, s)` at a place of each image's own."""
    size, out = patch.shape[1], x.clone()
    dice = Dice(x, seed)
    downs, acrosses = (dice.below(side - size + 1).tolist() for side in x.shape[2:])
    for image, down, across in zip(out, downs, acrosses, strict=True):
        image[:, down : down + size, across : across + size] = patch.to(x)
    return out
