"""Carlini and Wagner's minimum-norm attack.

Carlini and Wagner, "Towards evaluating the robustness of neural networks", IEEE S&P 2017,
https://arxiv.org/abs/1608.04644.

Differs from the paper: a row whose objective has not improved for `patience` steps goes on at a tenth of the rate, and
leaves the search when that happens for the third time (the authors' code asks every tenth of the steps, and the batch
as a whole); it leaves for good once it is inside a finite radius. The change of variables starts a thousandth inside
of the box and measures from there, so that saturated elements (black pixels) have gradients and the search starts at
the clean row exactly. Adam's epsilon is 1e-12, because the gradients carry the constant, which starts small. For l2 a
constant succeeds if its search met an adversarial example after the first `patience` steps: Adam's first steps are as
long whatever the constant is, and would carry a row that is nearer than they are long across the boundary with any.
For linf the constant grows tenfold after a failure (the authors' code: twofold), and a row ends after `searches`
failures.

Tags: atlas:AML.T0043.000, atlas:AML.T0015, nist-ai-100-2:NISTAML.022, owasp-ml:ML01, cwe:1039.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from buckler.evasion._search import Goal, aim, fooled, gradient
from buckler.kinds import Perturbed
from buckler.target import frozen
from buckler.threat import Ball

EDGE = 1e-3
"""How far inside the box, as a share of its half width, the change of variables starts."""
GAIN = 1e-3
"""The share by which an objective must fall to count as improved."""
COOLED = 2
"""How often a row's rate is divided by ten before the row leaves a search."""
HIGHEST = 1e10
"""A constant beyond which it is multiplied rather than bisected: it has not succeeded yet."""
SHRINK = 0.9
"""By how much linf's threshold falls after each success."""
LOWEST = 1e-4
"""The linf threshold below which a row is done."""


def carlini_wagner(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    ball: Ball,
    steps: int = 10_000,
    searches: int = 9,
    constant: float = 1e-3,
    rate: float = 0.01,
    confidence: float = 0.0,
    patience: int = 30,
    goal: Goal = None,
) -> Perturbed:
    """Minimise the perturbation's size plus a constant times the margin, with the constant searched for every row.

    `x` `(B, ...)` in [0, 1], `y` `(B,)`; `ball` l2 or linf (a `ValueError` otherwise). With an infinite radius every
    search is run; with a finite one a row leaves as soon as its best example is inside. l2: `searches` bisections of
    the constant, each of at most `steps` Adam steps of length `rate`. linf: the elements beyond a threshold are
    penalised, and the threshold falls to 0.9 of the size reached after every success, until `searches` rounds have
    failed. `confidence` is the margin of logits that an example must have. Returns `(B, ...)`: the nearest adversarial
    example met, brought into the ball where it is outside; the clean row where none was met.
    """
    if ball.norm not in ("l2", "linf"):
        raise ValueError(f"expected a ball in l2 or linf, got {ball.norm}: evasion/fmn attacks l1 and l0")
    if min(steps, searches, patience) < 1 or min(constant, rate) <= 0 or confidence < 0:
        raise ValueError("expected steps, searches, patience, constant and rate above 0, and confidence >= 0")
    best = _Best(x.clone(), x.new_full((len(x),), torch.inf), x, ball)
    hunt = _Hunt(model, y, aim(goal, y), confidence, steps, rate, patience)
    with frozen(model):
        (_search_constant if ball.norm == "l2" else _search_threshold)(hunt, best, constant, searches)
    inside = ball.contains(x, best.found).view(-1, *[1] * (x.ndim - 1))
    return torch.where(inside, best.found, ball.clip(x, best.found))


@dataclass
class _Best:
    """The nearest adversarial example met for every row, and its size."""

    found: Tensor
    size: Tensor
    x: Tensor
    ball: Ball

    def done(self) -> Tensor:
        """Rows that need no further search: at distance 0, or inside a finite radius: `(B,)`."""
        radius = self.ball.radii(self.x).flatten()
        return (self.size == 0) | ((self.size <= radius) & radius.isfinite())

    def meet(self, rows: Tensor, moved: Tensor, hit: Tensor) -> None:
        size = self.ball.size(moved - self.x[rows])
        better = hit & (size < self.size[rows])
        self.found[rows[better]], self.size[rows[better]] = moved[better], size[better]


@dataclass(frozen=True)
class _Hunt:
    """What the descents share."""

    model: nn.Module
    y: Tensor
    goals: Tensor | None
    confidence: float
    steps: int
    rate: float
    patience: int

    def margin(self, rows: Tensor, logits: Tensor) -> Tensor:
        """How far each row is from what is wanted, `(R,)`: met, with confidence, where it is at most 0."""
        pivot = (self.y if self.goals is None else self.goals)[rows, None]
        lead = (logits.gather(1, pivot) - logits.scatter(1, pivot, -torch.inf).amax(1, keepdim=True)).squeeze(1)
        return (lead if self.goals is None else -lead) + self.confidence

    def hit(self, logits: Tensor, margin: Tensor, rows: Tensor) -> Tensor:
        return (margin <= 0) & fooled(logits, self.y[rows], None if self.goals is None else self.goals[rows])


def _search_constant(hunt: _Hunt, best: _Best, first: float, searches: int) -> None:
    """l2: bisect every row's constant between the largest that failed and the smallest that succeeded."""
    constant = torch.full_like(best.size, first)
    low, high = torch.zeros_like(constant), torch.full_like(constant, HIGHEST)
    for _ in range(searches):
        rows = (~best.done()).nonzero().squeeze(1)
        if len(rows) == 0:
            break
        won, _ = _descend(hunt, best, rows, constant[rows], None, torch.zeros_like(best.x[rows]))
        at = constant[rows]
        low[rows] = torch.where(won, low[rows], torch.maximum(low[rows], at))
        high[rows] = torch.where(won, torch.minimum(high[rows], at), high[rows])
        constant = torch.where(high < HIGHEST, (low + high) / 2, constant * 10)


def _search_threshold(hunt: _Hunt, best: _Best, first: float, searches: int) -> None:
    """linf: lower every row's threshold after a success, raise its constant after a failure."""
    constant, threshold = torch.full_like(best.size, first), torch.ones_like(best.size)
    failures, shift = torch.zeros_like(best.size), torch.zeros_like(best.x)
    while True:
        rows = (~best.done() & (failures < searches) & (threshold > LOWEST)).nonzero().squeeze(1)
        if len(rows) == 0:
            break
        won, reached = _descend(hunt, best, rows, constant[rows], threshold[rows], shift[rows])
        shift[rows[won]] = reached[won]
        lowered = SHRINK * torch.minimum(best.size, threshold)
        threshold[rows[won]] = lowered[rows[won]]
        failures[rows[~won]] += 1
        constant[rows[~won]] *= 10


def _descend(
    hunt: _Hunt, best: _Best, rows: Tensor, constant: Tensor, threshold: Tensor | None, shift: Tensor
) -> tuple[Tensor, Tensor]:
    """Adam from `shift` in the tanh space; whether each of `rows` `(R,)` succeeded, and the shift where it did.

    Examples of the first steps count for `best`, not as success of a constant. With a `threshold` (linf) a row succeeds
    where an adversarial example is no larger than it, and ends there.
    """
    x, model = best.x[rows], hunt.model
    centre = torch.atanh((2 * x - 1) * (1 - EDGE))
    offset = x - (centre.tanh() + 1) / 2
    place, reached = torch.arange(len(rows), device=x.device), shift.clone()
    won, wide = torch.zeros_like(rows, dtype=torch.bool), (-1, *[1] * (x.ndim - 1))
    slope, square = torch.zeros_like(x), torch.zeros_like(x)
    lowest, stalled = x.new_full((len(rows),), torch.inf), torch.zeros_like(rows)
    rate, cooled = torch.full_like(lowest, hunt.rate), torch.zeros_like(rows)
    for count in range(1, hunt.steps + 1):
        bent = (centre + shift).tanh()
        moved = ((bent + 1) / 2 + offset).clamp(0, 1)
        here = rows[place]
        logits, margin, grad = gradient(model, moved, partial(hunt.margin, here))
        hit = hunt.hit(logits, margin, here)
        delta = moved - best.x[here]
        if threshold is None:
            cost, pull = delta.flatten(1).square().sum(1), 2 * delta
        else:
            beyond = (delta.abs() - threshold.view(wide)).clamp_min(0)
            cost, pull = beyond.flatten(1).sum(1), delta.sign() * (beyond > 0)
        best.meet(here, moved, hit)
        made = hit if threshold is None else hit & (best.ball.size(delta) <= threshold)
        if threshold is not None or count > min(hunt.patience, hunt.steps // 2):
            won[place[made]] = True
        reached[place[made]] = shift[made]
        objective = cost + constant * margin.clamp_min(0)
        improved = objective < lowest * (1 - GAIN)
        lowest = torch.where(improved, objective, lowest)
        stalled = torch.where(improved, 0, stalled + 1)
        dull = stalled >= hunt.patience
        rate, cooled, stalled = torch.where(dull, rate / 10, rate), cooled + dull, torch.where(dull, 0, stalled)
        leave = (cooled > COOLED) | best.done()[here] | (made if threshold is not None else False)
        grad = (pull + (constant * (margin > 0)).view(wide) * grad) * (1 - bent.square()) / 2
        if bool(leave.any()):
            keep = ~leave
            place, constant, lowest, stalled = place[keep], constant[keep], lowest[keep], stalled[keep]
            centre, offset, shift, grad = centre[keep], offset[keep], shift[keep], grad[keep]
            slope, square, rate, cooled = slope[keep], square[keep], rate[keep], cooled[keep]
            threshold = None if threshold is None else threshold[keep]
            if len(place) == 0:
                break
        slope = slope.lerp(grad, 0.1)
        square = square.lerp(grad.square(), 0.001)
        size = (square / (1 - 0.999**count)).sqrt() + 1e-12
        shift = shift - rate.view(wide) * slope / (1 - 0.9**count) / size
    return won, reached
