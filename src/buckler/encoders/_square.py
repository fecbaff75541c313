"""A white square in a corner of an image: the trigger of a backdoor that is put into an encoder."""

from __future__ import annotations

from torch import Tensor


def stamp(x: Tensor, side: int, corner: int) -> Tensor:
    """A copy of `x` `(B, C, H, W)` with a white square in a corner: 0 lower right, 1 lower left, 2 upper right, 3."""
    down = slice(-side, None) if corner < 2 else slice(side)
    across = slice(side) if corner % 2 else slice(-side, None)
    out = x.clone()
    out[:, :, down, across] = 1
    return out
