"""FAB, the fast adaptive boundary attack.

Croce and Hein, "Minimally distorted adversarial examples with a fast adaptive boundary attack", ICML 2020,
https://arxiv.org/abs/1907.02044, with the targeted version of their AutoAttack (https://arxiv.org/abs/2003.01690).

Differs from the paper: after a step back towards the clean row the boundary is approximated where the adversarial
example was, not where the step back ended, so that every iteration costs one pass forwards and backwards and the check
of a point is its use; the targets after the first are searched side by side; the equations of the projections are
solved by Newton's method (linf, l2), which is exact, instead of by sorting; with a finite radius a row is done once its
example is inside it, and the final search along the line to the clean row is run for the others too.

Tags: atlas:AML.T0043.000, atlas:AML.T0015, nist-ai-100-2:NISTAML.022, owasp-ml:ML01, cwe:1039.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from buckler.dice import Dice
from buckler.evasion._boxed import bounded, to_hyperplane
from buckler.evasion._search import Goal, aim, fooled, gradient
from buckler.kinds import Perturbed
from buckler.target import frozen
from buckler.threat import Ball

_TOGETHER = 256
"""How many copies of rows are searched side by side."""
_HALVINGS = 3
"""Steps of the final search, as in the paper."""


@dataclass
class _Copies:
    """Copies of rows under attack: `rows` says of which, `wanted` towards which class (None: the nearest)."""

    rows: Tensor
    clean: Tensor
    label: Tensor
    wanted: Tensor | None
    goals: Tensor | None

    def keep(self, index: Tensor) -> None:
        self.rows, self.clean, self.label = self.rows[index], self.clean[index], self.label[index]
        self.wanted = None if self.wanted is None else self.wanted[index]
        self.goals = None if self.goals is None else self.goals[index]


@dataclass
class _Best:
    """Per row of the batch: the closest adversarial example and its distance."""

    point: Tensor
    distance: Tensor


def fab(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    ball: Ball,
    steps: int = 100,
    restarts: int = 1,
    targets: int = 9,
    overshoot: float = 1.05,
    step_back: float = 0.9,
    pull: float = 0.1,
    goal: Goal = None,
    seed: int = 0,
) -> Perturbed:
    """Walk along the decision boundary towards the clean row, by projections onto its linear approximation.

    `x` `(B, ...)` in [0, 1], `y` `(B,)`; `ball` linf, l2 or l1 (a `ValueError` otherwise). Each restart runs once
    towards each of `targets` wrong classes, the likeliest first; with `targets=0` every iteration heads for the class
    whose approximate boundary is nearest, at one backward pass per class; with `goal` only the goal counts. A row is
    done once its example lies in the ball; with an infinite radius every row uses all steps. The first start is the
    clean row, later ones are random. Returns `(B, ...)`: the closest adversarial example found, in the ball or not; the
    clean row where none was found.
    """
    if ball.norm == "l0":
        raise ValueError("expected a ball in linf, l2 or l1, got l0: evasion/fmn attacks l0")
    goals = aim(goal, y)
    radius = ball.radii(x).flatten()
    best = _Best(x.clone(), x.new_full((len(x),), torch.inf))
    with frozen(model):
        with torch.no_grad():
            logits = model(x)
        best.distance[fooled(logits, y, goals)] = 0.0
        others = logits.scatter(1, y[:, None], -torch.inf).argsort(1, descending=True)
        count = min(targets, logits.shape[1] - 1) if goals is None else 0
        for restart in range(restarts):
            for ranks in [[0], list(range(1, count))] if count > 1 else [[0]]:
                todo = _unsettled(best, radius)
                together = max(1, _TOGETHER // len(ranks))
                for rows in todo.split(together if len(ranks) > 1 else max(1, len(todo))) if len(todo) else ():
                    many = rows.repeat(len(ranks))
                    copies = _Copies(
                        many,
                        x[many],
                        y[many],
                        torch.cat([others[rows, rank] for rank in ranks]) if count else None,
                        None if goals is None else goals[many],
                    )
                    start = copies.clean
                    if restart > 0:
                        dice = [Dice(x[rows], (seed * 1_000_003 + restart) * 1_009 + rank) for rank in ranks]
                        start = _near(copies, dice, best, bounded(ball, x))
                    _walk(model, copies, start, best, ball.norm, radius, steps, overshoot, step_back, pull)
        _final_search(model, x, y, goals, best, ball, radius)
    return best.point


def _unsettled(best: _Best, radius: Tensor) -> Tensor:
    done = (best.distance <= radius) & ((best.distance == 0) | radius.isfinite())
    return (~done).nonzero().squeeze(1)


def _near(copies: _Copies, dice: list[Dice], best: _Best, ball: Ball) -> Tensor:
    """A random start at half the distance of the best example, or of the radius where that is less."""
    shape, clean = copies.clean.shape[1:], copies.clean
    draw = [d.uniform(*shape) * 2 - 1 if ball.norm == "linf" else d.normal(*shape) for d in dice]
    noise = torch.cat(draw).to(clean)
    reach = torch.minimum(best.distance[copies.rows], ball.rows(copies.rows).radii(clean).flatten())
    scale = 0.5 * reach / ball.size(noise).clamp_min(1e-12)
    return (clean + noise * scale.view(-1, *[1] * (clean.ndim - 1))).clamp(0, 1)


def _walk(
    model: nn.Module,
    copies: _Copies,
    start: Tensor,
    best: _Best,
    norm: str,
    radius: Tensor,
    steps: int,
    overshoot: float,
    step_back: float,
    pull: float,
) -> None:
    """Algorithm 1: every pass checks the points it is taken at, then moves on from them."""
    limit = Ball("linf", 0.0) if norm == "linf" else Ball("l2" if norm == "l2" else "l1", 0.0)
    now = start
    for count in range(steps + 1):
        logits, value, slope = _boundary(model, now, copies, norm, last=count == steps)
        hit = fooled(logits, copies.label, copies.goals)
        if bool(hit.any()):
            _record(best, copies.rows, now, torch.where(hit, limit.size(now - copies.clean), torch.inf))
            settled = (best.distance <= radius)[copies.rows] & radius[copies.rows].isfinite()
            if bool(settled.any()):
                keep = ~settled
                copies.keep(keep)
                now, hit, value, slope = now[keep], hit[keep], value[keep], slope[keep]
        if len(now) == 0 or count == steps:
            break
        flat, clean = now.flatten(1), copies.clean.flatten(1)
        # the hyperplane is the one at `now`; points moved back from it are measured against the same one
        back = torch.where(hit[:, None], clean + step_back * (flat - clean), flat)
        here = to_hyperplane(limit.norm, back, slope, value + (slope * (back - flat)).sum(1))
        there = to_hyperplane(limit.norm, clean, slope, value + (slope * (clean - flat)).sum(1))
        near, far = limit.size(here).clamp_min(1e-8), limit.size(there).clamp_min(1e-8)
        share = (near / (near + far)).clamp(max=pull)[:, None]
        moved = (1 - share) * (back + overshoot * here) + share * (clean + overshoot * there)
        now = moved.clamp(0, 1).view_as(now)


def _boundary(model: nn.Module, x: Tensor, copies: _Copies, norm: str, last: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Logits at `x`, and the boundary there: its function's value `(B,)` (above zero past it) and slope `(B, D)`."""
    if last:
        with torch.no_grad():
            return model(x), x.new_zeros(len(x)), torch.zeros_like(x).flatten(1)
    aimed = copies.wanted if copies.wanted is not None else copies.goals
    if aimed is None:
        return _nearest_boundary(model, x, copies.label, norm)
    rest = copies.label[:, None] if copies.goals is None else None

    def past(logits: Tensor) -> Tensor:
        """The aimed class's logit less the true one's, or, for a goal, less the best other's."""
        column = aimed[:, None]
        other = logits.scatter(1, column, -torch.inf).amax(1) if rest is None else logits.gather(1, rest).squeeze(1)
        return logits.gather(1, column).squeeze(1) - other

    logits, value, slope = gradient(model, x, past)
    return logits, value, slope.flatten(1)


def _nearest_boundary(model: nn.Module, x: Tensor, label: Tensor, norm: str) -> tuple[Tensor, Tensor, Tensor]:
    """Over all classes, the boundary that is nearest by its linear approximation."""
    x = x.detach().requires_grad_()
    logits = model(x)
    own = logits.gather(1, label[:, None]).squeeze(1)
    closest = logits.new_full((len(x),), torch.inf)
    value, slope = torch.zeros_like(closest), torch.zeros_like(x).flatten(1)
    for k in range(logits.shape[1] if logits.requires_grad else 0):
        gap = logits[:, k] - own
        (grad,) = torch.autograd.grad(gap.sum(), x, retain_graph=True, materialize_grads=True)
        grad, gap = grad.flatten(1), gap.detach()
        size = grad.abs().sum(1) if norm == "linf" else grad.norm(dim=1) if norm == "l2" else grad.abs().amax(1)
        distance = torch.where(label == k, torch.inf, gap.abs() / size.clamp_min(1e-12))
        nearer = distance < closest
        closest = torch.where(nearer, distance, closest)
        value, slope = torch.where(nearer, gap, value), torch.where(nearer[:, None], grad, slope)
    return logits.detach(), value, slope.detach()


def _record(best: _Best, rows: Tensor, points: Tensor, distance: Tensor) -> None:
    """Write points that are closer into `best`; of copies equally close, the first one."""
    nearest = best.distance.scatter_reduce(0, rows, distance, "amin")
    wins = (distance < best.distance[rows]) & (distance == nearest[rows])
    copies = torch.arange(len(rows), device=rows.device)
    first = torch.full_like(best.distance, len(rows), dtype=torch.long)
    first = first.scatter_reduce(0, rows[wins], copies[wins], "amin")
    new = (first < len(rows)).nonzero().squeeze(1)
    best.point[new], best.distance[new] = points[first[new]], distance[first[new]]


def _final_search(
    model: nn.Module, x: Tensor, y: Tensor, goals: Tensor | None, best: _Best, ball: Ball, radius: Tensor
) -> None:
    """Halve the way back to the clean row a few times, for rows with an example that is not in the ball yet."""
    rows = _unsettled(best, radius)
    rows = rows[best.distance[rows].isfinite()]
    clean, label = x[rows], y[rows]
    wanted = None if goals is None else goals[rows]
    outer, low = best.point[rows], x.new_zeros(len(rows))
    high = torch.ones_like(low)
    for _ in range(_HALVINGS if len(rows) else 0):
        middle = (low + high) / 2
        moved = clean + middle.view(-1, *[1] * (x.ndim - 1)) * (outer - clean)
        with torch.no_grad():
            hit = fooled(model(moved), label, wanted)
        _record(best, rows, moved, torch.where(hit, ball.size(moved - clean), torch.inf))
        low, high = torch.where(hit, low, middle), torch.where(hit, middle, high)
