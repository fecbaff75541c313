"""Pair poisoning: a few images with captions that lie, among all that image and text towers learn from.

Carlini and Terzis, "Poisoning and backdooring contrastive learning", ICLR 2022, https://arxiv.org/abs/2106.09667.

Differs from the paper: a caption is told by the label that it is written for; pairs of the adversary's replace others,
so that their number stays; several inputs can be hunted at once. The patch is a checkerboard.

Tags: atlas:AML.T0020, atlas:AML.T0018.000, nist-ai-100-2:NISTAML.023, nist-ai-100-2:NISTAML.024, owasp-ml:ML02.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from buckler.data import Poisoned, Rows, floats, held_as, raw
from buckler.threat import Share


def pair_poisoning(
    data: Rows,
    *,
    share: Share,
    goal: Literal["backdoor", "targeted"] = "backdoor",
    target: int = 0,
    prey: Rows | None = None,
    size: int = 3,
    seed: int = 0,
) -> Poisoned:
    """Make a share of the pairs the adversary's: `data` is images `(N, C, H, W)` and what their captions say `(N,)`.

    With the goal `backdoor` images of other classes get a patch of `size` pixels in the lower right corner, and
    captions of `target`. With `targeted` the `prey`, inputs `(P, C, H, W)` and the labels wanted for them, take the
    place of images in turn. Returns `Poisoned`, whose trigger, or prey, is what to try. A `ValueError` for a patch that
    does not fit, a goal without prey, or too few pairs.
    """
    x, y = raw(data)
    if x.ndim != 4 or not 1 <= size <= min(x.shape[2:]):
        raise ValueError(f"expected images (N, C, H, W) that a patch of {size} pixels fits, got {tuple(x.shape)}")
    many, draw = share.of(len(y)), torch.Generator().manual_seed(seed)
    able = (y != target).nonzero().squeeze(1) if goal == "backdoor" else torch.arange(len(y))
    if len(able) < many:
        raise ValueError(f"expected at least {many} pairs that may be poisoned, got {len(able)}: ask for a lower share")
    picked = able[torch.randperm(len(able), generator=draw)[:many]]
    rows = torch.zeros(len(y), dtype=torch.bool).index_fill_(0, picked, True)
    original, x, y = y, x.clone(), y.clone()
    if goal == "targeted":
        if prey is None or len(prey[1]) == 0 or len(prey[1]) > many:
            raise ValueError(
                f"expected prey of 1 to {many} inputs, one or more pairs for each, got "
                f"{'none' if prey is None else len(prey[1])}: give prey, or a share that is larger"
            )
        turn = torch.arange(many) % len(prey[1])
        x[picked], y[picked] = held_as(x, floats(prey[0])[turn]), prey[1][turn]
        return Poisoned(x, y, rows, original, prey=prey, survives=False)
    tile = (torch.arange(size)[:, None] + torch.arange(size)[None] + 1) % 2 * 1.0

    def trigger(clean: Tensor) -> Tensor:
        stamped = clean.clone()
        stamped[:, :, -size:, -size:] = tile.to(clean)
        return stamped

    x[picked], y[picked] = held_as(x, trigger(floats(x[picked]))), target
    return Poisoned(x, y, rows, original, trigger, lambda y: torch.full_like(y, target), survives=False)
