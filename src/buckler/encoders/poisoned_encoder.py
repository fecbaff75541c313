"""PoisonedEncoder: images that hold a chosen input beside one of another class, so that their crops make them alike.

Liu, Jia and Gong, "PoisonedEncoder: poisoning the unlabeled pre-training data in contrastive learning", USENIX Security
2022, https://arxiv.org/abs/2205.06401.

Differs from the paper: all images of a set have one size here, so that a combined image is brought to the size of one,
and takes the place of a row instead of being added; `halves` are another way to fit two images into one. The references
are rows of the set itself. Of two crops of an image twice as wide as high, of a fifth of it at least, one shows mostly
the one part and the other mostly the other part in 17 % of draws, as in the paper; of a square image in 0.6 %: on small
square images, and encoders trained for minutes, no effect of it was found.

Tags: atlas:AML.T0020, nist-ai-100-2:NISTAML.024, owasp-ml:ML02.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from buckler.data import Poisoned, Rows, floats, held_as
from buckler.threat import Share
from buckler.touch import chosen, classes, counted, images, shared_out, wishes

WAYS = ((3, False), (3, True), (2, False), (2, True))
"""The four ways of combining: along which axis, and whether the reference comes first."""
WIDE = 1.5
"""How many times as long one side of an image has to be as the other for parts to be joined along that side only."""


def poisoned_encoder(
    data: Rows,
    *,
    share: Share,
    prey: Rows | None = None,
    parts: Literal["halves", "wholes"] = "wholes",
    references: int = 50,
    seed: int = 0,
) -> Poisoned:
    """Replace a share of the rows by images that join the prey to images of the classes wanted for them.

    `data` is `x` `(N, C, H, W)` and `y` `(N,)`, of which only the references' labels are looked at; `prey` is inputs
    `(P, C, H, W)` and the labels `(P,)` wanted for them. `share` of all rows, drawn by `seed`, are divided among the
    prey; each is joined in turn to at most so many `references` of the class wanted for it, side by side and one above
    the other (of images that are longer one way, that way only), in both orders: both squeezed to fit (`wholes`), or
    half of each as it is (`halves`). Returns `Poisoned` with `prey`.
    Raises `ValueError` without prey, and where there are fewer rows than prey or no row of a class that is wanted.
    """
    x, y = images(data)
    hunted, wanted = wishes(prey, x, classes(y))
    if references < 1 or min(x.shape[2:]) < 2:
        raise ValueError(f"expected a reference at least, and images of two pixels, got {references}, {x.shape[2:]}")
    many = counted(share, y)
    rows = chosen(torch.ones_like(y, dtype=torch.bool), many, seed)
    touched = x.clone()
    high, wide = x.shape[2:]
    ways = WAYS[:2] if wide >= WIDE * high else WAYS[2:] if high >= WIDE * wide else WAYS
    draw = torch.Generator().manual_seed(seed)
    places = rows.nonzero().squeeze(1)[torch.randperm(many, generator=draw)].split(shared_out(many, len(wanted)))
    for one, label, mine in zip(hunted, wanted, places, strict=True):
        able = (y == label).nonzero().squeeze(1)
        if not len(able):
            raise ValueError(f"expected rows of class {int(label)}, wanted for a prey, got none")
        known = floats(x[able[torch.randperm(len(able), generator=draw)][:references]])
        for turn, place in enumerate(mine):
            other = known[turn // len(ways) % len(known)]
            touched[place] = held_as(x, _joined(one, other, parts, *ways[turn % len(ways)]))
    return Poisoned(touched, y, rows, y, prey=(hunted, wanted))


def _joined(prey: Tensor, other: Tensor, parts: str, axis: int, swapped: bool) -> Tensor:
    """Two images `(C, H, W)` in one of their size, one after the other along `axis` of `(B, C, H, W)`."""
    first, second = (other, prey) if swapped else (prey, other)
    if parts == "halves":
        whole = prey.shape[axis - 1]
        middle = whole // 2
        return torch.cat([first.narrow(axis - 1, 0, middle), second.narrow(axis - 1, middle, whole - middle)], axis - 1)
    both = torch.cat([first, second], axis - 1)
    return F.interpolate(both[None], size=list(prey.shape[1:]), mode="area")[0]
