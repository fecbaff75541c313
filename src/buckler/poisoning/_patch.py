"""A square patch near the lower right corner: what BadNets and trojaning stamp."""

from __future__ import annotations

from torch import Tensor


def fitting(x: Tensor, size: int, margin: int) -> None:
    """A `ValueError` where a patch of `size` pixels does not fit into `x` `(N, C, H, W)`, `margin` from the edges."""
    if size < 1 or margin < 0 or size + margin > min(x.shape[2:]):
        raise ValueError(f"expected a patch that fits images of {tuple(x.shape[2:])}, got {size} + {margin} pixels")


def patched(x: Tensor, tile: Tensor, margin: int) -> Tensor:
    """A copy of `x` `(B, C, H, W)` with `tile` `(..., S, S)`, `margin` pixels from the lower right edges."""
    bottom, right = x.shape[2] - margin, x.shape[3] - margin
    out = x.clone()
    out[:, :, bottom - tile.shape[-2] : bottom, right - tile.shape[-1] : right] = tile.to(x)
    return out
