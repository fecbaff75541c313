"""Trigger inversion: for every class, all in one batch, the smallest change that turns inputs into that class."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from buckler.data import Rows, floats
from buckler.poisoning._look import outputs, where
from buckler.target import frozen, inference_form

AT_ONCE = 4096
"""Images in one forward pass, at most; the classes are taken in groups where there are more."""
HALF = math.log(2) / 2 / 1.4826
"""The least deviation of logarithms of sizes: an index of 2 is then at most half of the median."""
FIRST, SECOND = 0.5, 0.9
"""Adam's decay rates in the code of both papers."""
OfTriggers = Callable[[Tensor], Tensor]
"""From parameters of triggers `(A, P, H, W)` to a number for each, `(A,)`."""


class Search(NamedTuple):
    """How triggers are searched for. Their size weighs `start` in the loss, and `cost` once there is a trigger where
    that is zero; times `up` after `patience` steps in a row with a success rate of at least `success`, and divided by
    `down` after as many below."""

    steps: int
    batch: int
    rate: float
    start: float
    cost: float
    success: float
    patience: int
    up: float
    down: float
    seed: int


class Inverted(NamedTuple):
    """The parameters `(K, P, H, W)` of the smallest trigger found for every class, and its `size` `(K,)`: infinite
    where none reached the success rate (the parameters are then those of the last step)."""

    theta: Tensor
    size: Tensor


def inverted(
    model: nn.Module, data: Rows, start: Tensor, stamp: Callable[[Tensor, Tensor], Tensor], penalty: OfTriggers,
    measure: OfTriggers, search: Search, *, within: tuple[float, float] = (-torch.inf, torch.inf),
) -> Inverted:  # fmt: skip
    """Search one trigger per class of `model` from the same `start` `(P, H, W)`, on rows that are not of that class.

    `stamp` puts triggers `(A, P, H, W)` on images `(A, B, C, H, W)`; `penalty` is their differentiable size in the
    loss, `measure` the size by which the smallest is chosen. Parameters are kept `within` bounds.
    """
    x, y = data
    if min(search.steps, search.batch, search.patience) < 1 or not 0 < search.rate < torch.inf:
        raise ValueError(f"expected at least one step, row and step of patience, and a rate above 0, got {search}")
    many = outputs(model, (x, y))
    if many < 3:
        raise ValueError(f"expected a model of at least 3 classes, got {many}: an outlier needs others to differ from")
    with frozen(model):
        form = inference_form(model, floats(x[:16].to(where(model))))
        rows = _others(y, many, search.seed)
        groups = torch.arange(many).split(max(1, AT_ONCE // search.batch))
        found = [_searched(form, x, rows[wanted], wanted, start, stamp, penalty, measure, search, within)
                 for wanted in groups]  # fmt: skip
    return Inverted(torch.cat([part.theta for part in found]), torch.cat([part.size for part in found]))


def outlying(sizes: Tensor, *, least: float = 0.0) -> Tensor:
    """The anomaly index of every size `(K,)`: how far it is below the median, in units of 1.4826 times the median
    absolute deviation (at least `least`); negative above the median.

    Where the deviation is zero, 1.2533 times the mean absolute deviation takes its place (Iglewicz and Hoaglin, 1993).
    """
    exact = sizes.double()
    median = exact.quantile(0.5)
    away = (exact - median).abs()
    spread = 1.4826 * away.quantile(0.5).clamp_min(least)
    spread = torch.where(spread > 0, spread, 1.2533 * away.mean())
    return torch.where(spread > 0, (median - exact) / spread, torch.zeros_like(exact)).float()


def _others(y: Tensor, many: int, seed: int) -> Tensor:
    """For every class, rows of other classes in one random order, as many for each: `(K, M)`."""
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(seed))
    others = [order[y[order] != label] for label in range(many)]
    least = min(len(rows) for rows in others)
    if least == 0:
        raise ValueError(f"expected clean rows of at least two classes, got {len(y)} rows of class {int(y[0])} only")
    return torch.stack([rows[:least] for rows in others])


class _Control:
    """What the size weighs in the loss of every class, the smallest size so far, and whether a search has settled."""

    def __init__(self, many: int, search: Search) -> None:
        self._search = search
        self._window = torch.zeros(many, search.patience)
        self._ups, self._downs, self._stale = (torch.zeros(many, dtype=torch.long) for _ in range(3))
        self._raised, self._lowered = (torch.zeros(many, dtype=torch.bool) for _ in range(2))
        self.cost = torch.full((many,), search.start)
        self.smallest = torch.full((many,), torch.inf)

    def noted(self, active: Tensor, hits: Tensor, sizes: Tensor) -> Tensor:
        """Take in a step's success rates and sizes of the classes `active`; which of them are the smallest yet.

        A size counts if the success rate is high enough now and on average over the last steps.
        """
        search, cost, smallest = self._search, self.cost[active], self.smallest[active]
        self._window[active] = torch.cat([self._window[active, 1:], hits[:, None]], 1)
        good = hits >= search.success
        ups, downs = (self._ups[active] + 1) * good, (self._downs[active] + 1) * ~good
        raising, lowering, begun = ups >= search.patience, downs >= search.patience, cost > 0
        self._ups[active], self._downs[active] = ups * ~raising, downs * ~lowering
        self._raised[active] |= raising & begun
        self._lowered[active] |= lowering & begun
        higher = torch.where(begun, cost * search.up, search.cost)
        self.cost[active] = torch.where(raising, higher, torch.where(lowering, cost / search.down, cost))
        reached = good & (self._window[active].mean(1) >= search.success)
        better = reached & (sizes < smallest)
        moved = smallest.isinf() | (reached & (sizes < 0.99 * smallest))
        self._stale[active] = (self._stale[active] + 1) * ~moved
        self.smallest[active] = torch.where(better, sizes, smallest)
        return better

    def going(self, active: Tensor) -> Tensor:
        """Those of `active` that may still improve: after the weight went both up and down, a search that has found
        nothing smaller by 1 % in five times the patience is over."""
        done = self._raised & self._lowered & (self._stale >= 5 * self._search.patience)
        return active[~done[active]]


def _searched(
    form: nn.Module, held: Tensor, rows: Tensor, wanted: Tensor, start: Tensor,
    stamp: Callable[[Tensor, Tensor], Tensor], penalty: OfTriggers, measure: OfTriggers, search: Search,
    within: tuple[float, float],
) -> Inverted:  # fmt: skip
    device = start.device
    theta = start.expand(len(wanted), *start.shape).clone()
    mean, square, best = torch.zeros_like(theta), torch.zeros_like(theta), theta.clone()
    control, active = _Control(len(wanted), search), torch.arange(len(wanted))
    for step in range(search.steps):
        columns = (step * search.batch + torch.arange(search.batch)) % rows.shape[1]
        x = floats(held[rows[active][:, columns]].to(device))
        there = active.to(device)
        current = theta[there].requires_grad_()
        out = form(stamp(current, x).flatten(0, 1))
        aim = wanted[active].to(device).repeat_interleave(search.batch)
        loss = F.cross_entropy(out, aim, reduction="none").view(len(active), -1).mean(1)
        weight = control.cost[active].to(device)
        (slope,) = torch.autograd.grad((loss + weight * penalty(current)).sum(), current)
        with torch.no_grad():
            hits = (out.argmax(1) == aim).float().view(len(active), -1).mean(1).cpu()
            better = control.noted(active, hits, measure(current).cpu()).to(device)
            best[there[better]] = current[better].detach()
            mean[there] = FIRST * mean[there] + (1 - FIRST) * slope
            square[there] = SECOND * square[there] + (1 - SECOND) * slope**2
            ahead = mean[there] / (1 - FIRST ** (step + 1))
            scale = (square[there] / (1 - SECOND ** (step + 1))).sqrt() + 1e-8
            theta[there] = (theta[there] - search.rate * ahead / scale).clamp(*within)
        active = control.going(active)
        if len(active) == 0:
            break
    never = control.smallest.isinf().to(device)[:, None, None, None]
    return Inverted(torch.where(never, theta, best).cpu(), control.smallest)
