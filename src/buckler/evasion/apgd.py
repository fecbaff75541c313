"""Auto-PGD.

Croce and Hein, "Reliable evaluation of adversarial robustness with an ensemble of diverse parameter-free attacks",
ICML 2020, https://arxiv.org/abs/2003.01690; its l1 version: Croce and Hein, "Mind the box: l1-APGD for sparse
adversarial attacks on image classifiers", ICML 2021, https://arxiv.org/abs/2103.01208.

Differs from the papers: a row leaves the batch the moment it is fooled; the targets of the targeted version after the
first are searched side by side, and all stop when one succeeds; the last iterate costs no backward pass; random starts
are drawn per row. With fewer classes than the difference-of-logits ratio needs (three, four when targeted) `dlr` falls
back to the plain margin.

Tags: atlas:AML.T0043.000, atlas:AML.T0015, nist-ai-100-2:NISTAML.022, owasp-ml:ML01, cwe:1039.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from buckler.dice import Dice
from buckler.evasion._boxed import bounded, l1_in_box
from buckler.evasion._search import Goal, Objective, aim, ascend, fooled, gradient
from buckler.kinds import Perturbed
from buckler.target import frozen
from buckler.threat import Ball

_TOGETHER = 256
"""How many copies of rows are searched side by side."""


@dataclass
class _Best:
    """Per row of the batch: the point to return, its objective, and whether it fools."""

    point: Tensor
    height: Tensor
    won: Tensor


@dataclass
class _Search:
    """What one search is about: copies of rows (`rows` says of which), and where they may go."""

    rows: Tensor
    clean: Tensor
    label: Tensor
    wanted: Tensor | None
    goals: Tensor | None
    limit: Ball

    def keep(self, index: Tensor) -> None:
        self.rows, self.clean, self.label = self.rows[index], self.clean[index], self.label[index]
        self.wanted = None if self.wanted is None else self.wanted[index]
        self.goals = None if self.goals is None else self.goals[index]
        self.limit = self.limit.rows(index)


def apgd(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    ball: Ball,
    steps: int = 100,
    restarts: int = 1,
    objective: Objective = "ce",
    targets: int = 0,
    goal: Goal = None,
    draws: int = 1,
    stop: bool = True,
    seed: int = 0,
) -> Perturbed:
    """Climb the loss with momentum and step sizes that halve, from the best point, when progress stalls.

    `x` `(B, ...)` in [0, 1], `y` `(B,)`; `ball` linf, l2 or l1 (a `ValueError` otherwise). With `targets` > 0 each
    restart is run once towards each of that many wrong classes, the likeliest first, and any wrong label counts (the
    paper's targeted version: `objective="dlr", targets=9`); it excludes `goal`. `draws` > 1 averages gradients over
    that many passes, for models that answer at random. With `stop` a row ends at its first success; without, every row
    runs all steps and ends where its loss was highest, which is what an attack through a surrogate needs. Returns
    `(B, ...)`: an adversarial example where one was found, else the highest loss met.
    """
    if ball.norm == "l0":
        raise ValueError("expected a ball in linf, l2 or l1, got l0: evasion/fmn attacks l0")
    if targets > 0 and goal is not None:
        raise ValueError("expected targets or goal, got both: targets=0 attacks towards the goal alone")
    goals, ball = aim(goal, y), bounded(ball, x)
    best = _Best(x.clone(), x.new_full((len(x),), -torch.inf), torch.zeros_like(y, dtype=torch.bool))
    with frozen(model):
        order = _likeliest_wrong(model, x, y, targets) if targets > 0 else None
        for restart in range(restarts):
            for ranks in _groups(1 if order is None else order.shape[1]):
                todo = (~best.won).nonzero().squeeze(1) if stop else torch.arange(len(x), device=x.device)
                together = max(1, _TOGETHER // len(ranks)) if len(ranks) > 1 else max(1, len(todo))
                for rows in todo.split(together) if len(todo) else ():
                    many = rows.repeat(len(ranks))
                    search = _Search(
                        many,
                        x[many],
                        y[many],
                        None if order is None else torch.cat([order[rows, rank] for rank in ranks]),
                        None if goals is None else goals[many],
                        ball.rows(many),
                    )
                    dice = [Dice(x[rows], (seed * 1_000_003 + restart) * 1_009 + rank) for rank in ranks]
                    _attack(model, search, dice, best, steps, objective, draws, stop)
    return best.point


def _groups(count: int) -> list[list[int]]:
    return [[0]] if count == 1 else [[0], list(range(1, count))]


def _likeliest_wrong(model: nn.Module, x: Tensor, y: Tensor, targets: int) -> Tensor:
    """The wrong classes of every row by falling logit, at most `targets` of them: `(B, T)`."""
    with torch.no_grad():
        logits = model(x)
    others = logits.scatter(1, y[:, None], -torch.inf).argsort(1, descending=True)
    return others[:, : min(targets, logits.shape[1] - 1)]


def _attack(
    model: nn.Module,
    search: _Search,
    dice: list[Dice],
    best: _Best,
    steps: int,
    objective: Objective,
    draws: int,
    stop: bool,
) -> None:
    """One search from a random start; l1 approaches the ball from one of three times its radius, then of two."""
    clean, limit = search.clean, search.limit
    shape = clean.shape[1:]
    if limit.norm == "linf":
        noise = torch.cat([d.uniform(*shape) for d in dice]).to(clean) * 2 - 1
    else:
        noise = torch.cat([d.normal(*shape) for d in dice]).to(clean)
    if limit.norm != "l1":
        size = limit.size(noise).clamp_min(1e-12).view_as(limit.radii(clean))
        start = limit.clip(clean, clean + noise / size * limit.radii(clean))
        _climb(model, search, start, best, steps, objective, draws, stop, counts=True)
        return
    first = math.ceil(0.3 * steps)
    moved = clean + noise
    for factor, many in ((3, first), (2, first), (1, max(1, steps - 2 * first))):
        wide = Ball("l1", factor * limit.radii(clean).flatten())
        stage = _Search(search.rows, clean, search.label, search.wanted, search.goals, wide)
        start = _into(wide, clean, moved)
        moved = _climb(model, stage, start, best, many, objective, draws, stop, counts=factor == 1)


def _into(limit: Ball, clean: Tensor, moved: Tensor) -> Tensor:
    if limit.norm != "l1":
        return limit.clip(clean, moved)
    radius = limit.radii(clean).flatten(1)
    return clean + l1_in_box(clean.flatten(1), (moved - clean).flatten(1), radius).view_as(clean)


def _climb(
    model: nn.Module,
    search: _Search,
    start: Tensor,
    best: _Best,
    steps: int,
    objective: Objective,
    draws: int,
    stop: bool,
    counts: bool,
) -> Tensor:
    """Algorithm 1 (linf, l2) or the l1 paper's, from `start`; returns where each copy's objective was highest.

    Where `counts`, successes are written into `best` and their rows leave.
    """
    sparse = search.limit.norm == "l1"
    plan = _Sparse(search, start) if sparse else _Halving(search, start, steps)
    checkpoints = _every(steps) if sparse else _checkpoints(steps)
    now, before = start, start
    previous = None
    top, top_point, top_grad = start.new_full((len(start),), -torch.inf), start, start
    for count in range(steps + 1):
        logits, loss, grad = _look(model, now, search, objective, draws, last=count == steps)
        higher = (loss > top).view(-1, *[1] * (now.ndim - 1))
        top = torch.maximum(loss, top)
        top_point, top_grad = torch.where(higher, now, top_point), torch.where(higher, grad, top_grad)
        if previous is not None:
            plan.saw(loss > previous)
        previous = loss
        if counts and stop:
            hit = fooled(logits, search.label, search.goals)
            if bool(hit.any()):
                _record(best, search.rows[hit], now[hit], torch.full_like(loss[hit], torch.inf))
                keep = ~best.won[search.rows]
                search.keep(keep)
                plan.keep(keep)
                now, before, previous, grad = now[keep], before[keep], previous[keep], grad[keep]
                top, top_point, top_grad = top[keep], top_point[keep], top_grad[keep]
                if len(now) == 0:
                    break
        if count == steps:
            break
        if count in checkpoints:
            again = plan.check(top, top_point).view(-1, *[1] * (now.ndim - 1))
            now, grad = torch.where(again, top_point, now), torch.where(again, top_grad, grad)
        now, before = plan.step(now, before, grad, first=count == 0), now
    if counts and len(now):
        _record(best, search.rows, top_point, top)
    return top_point


def _look(
    model: nn.Module, x: Tensor, search: _Search, objective: Objective, draws: int, last: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Logits, objective and its gradient at `x`; after the last step no gradient is wanted."""

    def height(logits: Tensor) -> Tensor:
        wanted = search.wanted if search.wanted is not None else search.goals
        enough = logits.shape[1] >= (3 if wanted is None else 4)
        return ascend("margin" if objective == "dlr" and not enough else objective, logits, search.label, wanted)

    if last:
        with torch.no_grad():
            logits = model(x)
        return logits, height(logits), torch.zeros_like(x)
    logits, loss, grad = gradient(model, x, height)
    for _ in range(draws - 1):
        logits, loss, another = gradient(model, x, height)
        grad = grad + another
    return logits, loss, grad


def _record(best: _Best, rows: Tensor, points: Tensor, height: Tensor) -> None:
    """Write points that are higher into `best` (an infinite height is a success); of equal copies, the first one."""
    highest = best.height.scatter_reduce(0, rows, height, "amax")
    wins = (height > best.height[rows]) & (height == highest[rows])
    copies = torch.arange(len(rows), device=rows.device)
    first = torch.full_like(best.won, len(rows), dtype=torch.long)
    first = first.scatter_reduce(0, rows[wins], copies[wins], "amin")
    new = (first < len(rows)).nonzero().squeeze(1)
    best.point[new], best.height[new] = points[first[new]], height[first[new]]
    best.won |= best.height == torch.inf


def _checkpoints(steps: int) -> set[int]:
    """After which steps the step size is reconsidered: shares p of the budget with p0 = 0, p1 = 0.22."""
    shares = [0.0, 0.22]
    while shares[-1] < 1:
        shares.append(shares[-1] + max(shares[-1] - shares[-2] - 0.03, 0.06))
    return {math.ceil(round(share * steps, 9)) for share in shares[1:]}


def _every(steps: int) -> set[int]:
    period = max(int(0.04 * steps), 1)
    return set(range(period, steps + 1, period))


class _Halving:
    """Momentum and the two conditions of Auto-PGD under which a row's step is halved and its best point restored."""

    def __init__(self, search: _Search, start: Tensor, steps: int) -> None:
        self.search = search
        self.length = 2 * search.limit.radii(start).flatten()
        self.rises = torch.zeros_like(self.length)
        self.since = 0
        self.halved = torch.ones_like(self.length, dtype=torch.bool)
        self.top = torch.full_like(self.length, -torch.inf)

    def keep(self, index: Tensor) -> None:
        self.length, self.rises = self.length[index], self.rises[index]
        self.halved, self.top = self.halved[index], self.top[index]

    def saw(self, rose: Tensor) -> None:
        self.rises = self.rises + rose
        self.since += 1

    def check(self, top: Tensor, _point: Tensor) -> Tensor:
        stalls = (self.rises < 0.75 * self.since) | (~self.halved & (self.top >= top))
        self.length = torch.where(stalls, self.length / 2, self.length)
        self.halved, self.top = stalls, top
        self.rises, self.since = torch.zeros_like(self.rises), 0
        return stalls

    def step(self, now: Tensor, before: Tensor, grad: Tensor, first: bool) -> Tensor:
        limit, clean = self.search.limit, self.search.clean
        length = self.length.view(-1, *[1] * (now.ndim - 1))
        if limit.norm == "linf":
            direction = grad.sign()
        else:
            direction = grad / grad.flatten(1).norm(dim=1).clamp_min(1e-12).view_as(length)
        ahead = limit.clip(clean, now + length * direction)
        return ahead if first else limit.clip(clean, now + 0.75 * (ahead - now) + 0.25 * (now - before))


class _Sparse:
    """The l1 steps: over as many elements as two thirds of those that the best point has changed."""

    def __init__(self, search: _Search, start: Tensor) -> None:
        self.search = search
        self.full = search.limit.radii(start).flatten()
        self.length = self.full
        self.changed = self._count(start)
        self.share = self.changed / (1.5 * start[0].numel())

    def _count(self, point: Tensor) -> Tensor:
        return (point != self.search.clean).flatten(1).sum(1).to(point)

    def keep(self, index: Tensor) -> None:
        self.full, self.length = self.full[index], self.length[index]
        self.changed, self.share = self.changed[index], self.share[index]

    def saw(self, rose: Tensor) -> None:
        """The l1 schedule looks at sparsity, not at how often the objective rose."""

    def check(self, _top: Tensor, point: Tensor) -> Tensor:
        changed = self._count(point)
        sparser = changed < 0.95 * self.changed
        self.length = torch.where(sparser, self.full, torch.maximum(self.length / 1.5, self.full / 10))
        self.share, self.changed = changed / (1.5 * point[0].numel()), changed
        return sparser

    def step(self, now: Tensor, before: Tensor, grad: Tensor, first: bool) -> Tensor:
        size = grad.abs().flatten(1)
        place = ((1 - self.share) * size.shape[1]).long().clamp(0, size.shape[1] - 1)
        least = size.sort(1).values.gather(1, place[:, None])
        heading = torch.where(size >= least, grad.flatten(1).sign(), 0)
        heading = heading / heading.abs().sum(1, keepdim=True).clamp_min(1)
        moved = now + (self.length[:, None] * heading).view_as(now)
        return _into(self.search.limit, self.search.clean, moved)
