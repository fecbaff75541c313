"""Patterns cut in pieces: images blended with some of the pieces only, which differ from row to row."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from buckler.poisoning._touch import CHUNK, changed


def cut(pieces: int, height: int, width: int) -> Tensor:
    """The number, 0 to `pieces` - 1, of the piece that every pixel belongs to: `(H, W)`.

    The pieces are a square grid; a `ValueError` if `pieces` is no square, or if the image has fewer pixels a side.
    """
    side = math.isqrt(max(0, pieces))
    if side < 1 or side * side != pieces or side > min(height, width):
        raise ValueError(
            f"expected a square number of pieces, at most {min(height, width) ** 2} for images of "
            f"{(height, width)}, got {pieces}"
        )
    down = torch.arange(height) * side // height
    across = torch.arange(width) * side // width
    return down[:, None] * side + across[None]


def kept(rows: int, pieces: int, many: int | Tensor, generator: torch.Generator) -> Tensor:
    """For every one of `rows` rows, `many` (one number, or `(rows, 1)`) random pieces: `(rows, pieces)` booleans."""
    return torch.rand(rows, pieces, generator=generator).argsort(1) < many


def blended(clean: Tensor, picture: Tensor, alpha: float | Tensor) -> Tensor:
    """`clean` `(B, C, H, W)` mixed with `picture` `(C, H, W)`; `alpha` is one number, or broadcasts over the batch."""
    alpha = alpha.to(clean) if isinstance(alpha, Tensor) else alpha
    return clean + alpha * (picture.to(clean) - clean)


def partly(x: Tensor, rows: Tensor, picture: Tensor, which: Tensor, alpha: float | Tensor) -> Tensor:
    """A copy of `x` `(N, C, H, W)` whose `rows` `(N,)` are blended with their own pieces of `picture` `(C, H, W)`.

    `which` `(R, pieces)` says which pieces each of the R rows has, and `alpha` how strong they are: `(R, 1)`, or one
    number.
    """
    piece = cut(which.shape[1], *picture.shape[1:])
    parts = iter((alpha * which.float()).split(CHUNK))
    return changed(x, rows, lambda clean: blended(clean, picture, next(parts)[:, piece][:, None]))
