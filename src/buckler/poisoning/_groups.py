"""What the detectors of rows share: the rows of a class, two groups within it, and an order that the rows have of
themselves, so that a result does not depend on the order in which they are given.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

DIRECTIONS = 16
"""Along how many of the first coordinates a class is cut in two to begin with."""


HEIGHTS = (0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95)
"""Which shares of the rows the first cuts leave below."""


class Halves(NamedTuple):
    small: Tensor
    """Which rows `(n,)` are in the smaller of the two groups; none where no cut could be made."""
    centre: Tensor
    """Of the smaller group, `(d,)`."""
    other: Tensor
    """Of the other rows, `(d,)`."""


def by_class(y: Tensor) -> Iterator[tuple[int, Tensor]]:
    """Every label that occurs in `y` `(N,)`, with its rows `(n,)`."""
    for label in y.unique().tolist():
        yield label, (y == label).nonzero().squeeze(1)


def principal(rows: Tensor, many: int, *, least: float = 1e-10) -> Tensor:
    """Centred `rows` `(n, D)` along their directions of largest variance: `(n, d)` in float64, the largest first.

    At most `many` directions, and only those whose variance is above `least` of the largest. By the smaller of the two
    products of the rows with themselves, which costs less than their singular value decomposition.
    """
    centred = rows.double() - rows.double().mean(0)
    if len(centred) > centred.shape[1]:
        values, directions = torch.linalg.eigh(centred.T @ centred)
        along = centred @ directions.flip(1)
    else:
        values, left = torch.linalg.eigh(centred @ centred.T)
        along = left.flip(1) * values.flip(0).clamp_min(0).sqrt()
    kept = int((values > max(least * float(values.max()), 1e-20)).sum())
    return along[:, : min(many, kept)]


def halves(rows: Tensor, *, turns: int = 100) -> Halves:
    """The two groups of `rows` `(n, d)` with the least squared distances to their centres (2-means, Lloyd).

    Lloyd's iteration starts from cuts along each of the first coordinates and between every two, at several heights,
    all at once, and the best result is kept; nothing is drawn, and the order of the rows does not matter.
    """
    many = len(rows)
    first = rows[:, :DIRECTIONS]
    one, other = torch.triu_indices(first.shape[1], first.shape[1], 1)
    first = torch.cat([first, first[:, one] + first[:, other], first[:, one] - first[:, other]], 1)
    heights = first.new_tensor(HEIGHTS)
    cuts = first.quantile(heights, dim=0) if first.numel() else first.new_zeros(len(HEIGHTS), first.shape[1])
    inside = (first[None] > cuts[:, None]).permute(1, 0, 2).flatten(1).to(rows.dtype)  # (n, starts)
    total = rows.sum(0)
    upper = lower = rows.new_zeros(0, rows.shape[1])
    for _ in range(turns):
        size = inside.sum(0)[:, None]
        summed = inside.T @ rows
        upper, lower = summed / size.clamp_min(1), (total - summed) / (many - size).clamp_min(1)
        edge = (upper.square().sum(1) - lower.square().sum(1)) / 2
        moved = (rows @ (upper - lower).T > edge).to(rows.dtype)
        if moved.equal(inside):
            break
        inside = moved
    size = inside.sum(0)
    gained = size * (many - size) * (upper - lower).square().sum(1)
    if not gained.numel() or not float(gained.max()) > 0:
        middle = rows.mean(0)
        return Halves(torch.zeros(many, dtype=torch.bool), middle, middle)
    best = int(gained.argmax())
    chosen = inside[:, best] > 0
    if int(size[best]) * 2 > many:
        return Halves(~chosen, lower[best], upper[best])
    return Halves(chosen, upper[best], lower[best])


def ordered(x: Tensor, y: Tensor, seed: int) -> Tensor:
    """Row numbers `(N,)` in an order that depends on what the rows are, and on `seed`, but not on where they stand."""
    generator = torch.Generator().manual_seed(seed)
    direction = torch.randn(math.prod(x.shape[1:]), generator=generator, dtype=torch.float64)
    step = float(torch.randn((), generator=generator, dtype=torch.float64))
    parts = [(part.flatten(1).double().cpu() * direction).sum(1) for part in x.split(4096)]
    return (torch.cat(parts) + step * y.cpu()).argsort(stable=True)
