"""Parts of the rows that do not know of each other: one row more or less changes the part that it belongs to alone."""

from __future__ import annotations

from torch import Tensor

from buckler.dice import Dice


def parted(x: Tensor, parts: int, seed: int) -> list[Tensor]:
    """The rows `(n,)` of each part: where a row of `x` `(N, ...)` belongs is said by its content and the seed alone."""
    part = Dice(x, seed).below(parts)
    return [(part == one).nonzero().squeeze(1) for one in range(parts)]
