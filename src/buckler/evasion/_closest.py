"""The closest adversarial example met so far, per row, for attacks that minimise a norm."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from buckler.threat import Ball


@dataclass
class Closest:
    """Rows still under attack (`rows`, indices into the batch), with the best of each and when it is good enough."""

    rows: Tensor
    found: Tensor
    """`(B, ...)`: what rows that have left were left with."""
    best: Tensor
    """The size of the best of every row still here, infinite before a first one."""
    nearest: Tensor
    """The best itself, before a first one the clean row."""
    limit: Tensor
    """The radius of every row still here; `inf` asks for the minimum."""
    enough: Tensor
    """A row leaves when its best is this small."""
    watch: bool
    """Whether rows can leave after the first step. If not, no step waits for the device."""

    @classmethod
    def start(cls, x: Tensor, ball: Ball) -> Closest:
        limit = ball.radii(x).flatten()
        legal = limit if ball.norm == "l0" else limit * (1 + 5e-6) + 5e-7
        least = 1.0 if ball.norm == "l0" else 0.0
        enough = torch.where(limit.isfinite(), legal, least)
        watch = ball.norm == "l0" or bool(limit.isfinite().any())
        rows = torch.arange(len(x), device=x.device)
        return cls(rows, x.clone(), torch.full_like(limit, torch.inf), x.clone(), limit, enough, watch)

    def improve(self, moved: Tensor, size: Tensor, hit: Tensor) -> None:
        """Keep the rows of `moved`, of `size`, that are adversarial (`hit`) and closer than what there was."""
        better = hit & (size <= self.best)
        self.best = torch.where(better, size, self.best)
        spread = better.view(-1, *[1] * (moved.ndim - 1))
        torch.where(spread, moved, self.nearest, out=self.nearest)

    def leave(self, hit: Tensor, first: bool) -> Tensor | None:
        """Let rows go that cannot, or need not, improve: the mask of those that stay, or None if all do.

        A hit at the size that is enough ends a row: the clean row itself, one element in l0, anything within a finite
        radius.
        """
        if not (first or self.watch):
            return None
        over = hit & (self.best <= self.enough)
        if not over.any():
            return None
        self.found[self.rows[over]] = self.nearest[over]
        stay = ~over
        self.rows, self.best, self.nearest = self.rows[stay], self.best[stay], self.nearest[stay]
        self.limit, self.enough = self.limit[stay], self.enough[stay]
        return stay

    def finish(self) -> Tensor:
        """`(B, ...)`: the closest adversarial example of every row, the clean row where none is inside its radius."""
        outside = (self.limit.isfinite() & (self.best > self.enough)).view(-1, *[1] * (self.nearest.ndim - 1))
        self.found[self.rows] = torch.where(outside, self.found[self.rows], self.nearest)
        return self.found
