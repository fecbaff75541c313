"""HopSkipJump: the shortest way across the boundary, found from labels alone.

Chen, Jordan and Wainwright, "HopSkipJumpAttack: a query-efficient decision-based attack", IEEE S&P 2020,
https://arxiv.org/abs/1904.02144.

Differs from the paper: rows walk side by side, and the queries of one gradient estimate are asked together, in chunks
that fit memory. Every iteration's random directions are drawn once and shared by all rows, which leaves each row's
estimate as it is and makes it independent of the batch. The nearest adversarial example met is returned, not the last;
it is moved a thousandth further from the clean input if it is adversarial there too, so that rounding in a later
forward pass does not undo it. The start is noise at three contrasts, drawn again for rows where it fails; then several
more directions of noise compete, and the walk begins in the one that crosses the boundary first, because where a walk
begins decides which class's boundary it ends on. A targeted row starts from the nearest rows of the batch that carry
its target label, if there are any (so there, and only there, a row depends on its batch). Steps of an estimate are
never shorter than what the float type resolves.

Tags: atlas:AML.T0043.001, atlas:AML.T0015, atlas:AML.T0040, nist-ai-100-2:NISTAML.025, owasp-ml:ML01, cwe:1039.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from buckler.dice import Dice
from buckler.evasion._search import Goal, aim
from buckler.kinds import Perturbed
from buckler.target import LabelOracle, Oracle, QueryBudgetExceeded
from buckler.threat import Ball

CELLS = 1 << 24
"""Numbers in the largest tensor of queries that is built at once."""
DRAWN = 1 << 18
"""Numbers drawn at once for random directions."""
NARROWEST = 32
"""The smallest number of random directions drawn at once."""
DONORS = 4
"""Rows of the batch that are tried as the start of a targeted row."""
CONTRASTS = (1.0, 4.0, 0.25)
"""Exponents of uniform noise in [0, 1]: even, mostly dark, mostly bright."""
ROUNDS = 6
"""Rounds of the competition of starts: each halves the interval in which the winner crosses the boundary."""
HALVINGS = 16
"""How often a step is halved before the row stays where it is."""
FEWEST = 10
"""The smallest number of directions that an estimate is made from."""
NUDGE = 1e-3
"""The share of its length by which a found perturbation is made longer in the end."""


def hop_skip_jump(
    oracle: LabelOracle,
    x: Tensor,
    y: Tensor,
    *,
    ball: Ball,
    queries: int = 5000,
    samples: int = 100,
    most: int = 10_000,
    gamma: float = 1.0,
    tries: int = 100,
    starts: int = 30,
    goal: Goal = None,
    seed: int = 0,
) -> Perturbed:
    """Walk along the decision boundary towards the clean input, with gradients estimated from labels.

    `x` `(B, ...)` in [0, 1], `y` `(B,)`; `ball` l2 or linf (a `ValueError` otherwise). With an infinite radius a row
    walks until it has asked `queries` times; with a finite one it leaves as soon as its best example is inside. Where
    the oracle has a budget, each row gets at most its equal part of what is left. Iteration t asks
    samples * sqrt(t) queries, at most `most`, for its gradient; a binary search ends at gamma / d^1.5 (l2) or
    gamma / d^2 (linf) of its length. `tries` draws of noise are made for a start, then `starts` directions compete for
    a nearer one (0: none do) on at most a fifth of the row's queries. Returns `(B, ...)`: the nearest adversarial
    example met, brought into the ball where it is outside; the clean row where none was met.
    """
    if ball.norm not in ("l2", "linf"):
        raise ValueError(f"expected a ball in l2 or linf, got {ball.norm}: evasion/fmn attacks l1 and l0")
    if min(queries, samples, most) < 1 or gamma <= 0:
        raise ValueError("expected queries, samples, most and gamma above 0")
    share = queries
    if oracle.budget is not None and len(x) > 0:
        share = min(queries, (oracle.budget - oracle.asked) // len(x))
    goals, best, size = aim(goal, y), x.clone(), math.prod(x.shape[1:])
    many = max(1, CELLS // (size * max(starts, _chunk(size))))
    try:
        for rows in torch.arange(len(x), device=x.device).split(many):
            door = _Door(oracle, y[rows], None if goals is None else goals[rows], share)
            donors = _donors(x, y, rows, goals, ball) if goals is not None else x.new_empty(len(rows), 0, *x.shape[1:])
            walk = _Walk(door, x[rows], ball.rows(rows), gamma, seed)
            walk.start(donors, tries)
            walk.compete(starts, share - share // 5)
            best[rows] = walk.found
            while walk.step(samples, most):
                best[rows] = walk.found
            walk.settle()
            best[rows] = walk.found
    except QueryBudgetExceeded:
        pass
    inside = ball.contains(x, best).view(-1, *[1] * (x.ndim - 1))
    return torch.where(inside, best, ball.clip(x, best))


def _chunk(size: int) -> int:
    """How many directions of `size` numbers are drawn at once; it must not depend on how many rows there are."""
    return max(NARROWEST, DRAWN // size)


def _donors(x: Tensor, y: Tensor, rows: Tensor, goals: Tensor, ball: Ball) -> Tensor:
    """For every row the nearest rows of the batch labelled with its target, `(R, up to DONORS, ...)`; else NaN."""
    flat = x.flatten(1)
    far = torch.cdist(flat[rows], flat, p=2.0 if ball.norm == "l2" else math.inf)
    far = far.masked_fill(y[None] != goals[rows][:, None], torch.inf)
    near = far.topk(min(DONORS, len(x)), largest=False)
    chosen = x[near.indices]
    return chosen.masked_fill(near.values.isinf().view(*near.values.shape, *[1] * (x.ndim - 1)), torch.nan)


class _Door:
    """An oracle that every row asks on its own account; a row that has spent all is told "not adversarial"."""

    def __init__(self, oracle: Oracle, y: Tensor, goals: Tensor | None, share: int) -> None:
        self._oracle, self._y, self._goals, self._share = oracle, y, goals, share
        self._spent = torch.zeros_like(y, dtype=torch.long)

    def left(self, rows: Tensor) -> Tensor:
        return self._share - self._spent[rows]

    def ask(self, rows: Tensor, points: Tensor, keep: int = 0, able: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Whether `points` `(R, n, ...)` are adversarial, and which were asked, both `(R, n)`.

        The first of each row's points are asked, or the first `able` `(R, n)` ones; `keep` queries stay unspent.
        """
        turn = torch.arange(1, points.shape[1] + 1, device=points.device) if able is None else able.cumsum(1)
        asked = turn <= (self.left(rows) - keep)[:, None]
        asked = asked if able is None else asked & able
        answers = torch.zeros_like(asked)
        whole = bool(asked.all())
        batch = points.flatten(0, 1) if whole else points[asked]
        if len(batch) > 0:
            wanted = self._y if self._goals is None else self._goals
            wanted = wanted[rows][:, None].expand_as(asked)
            hit = (self._oracle.labels(batch) == (wanted.flatten() if whole else wanted[asked])) == (
                self._goals is not None
            )
            if whole:
                answers = hit.view_as(asked)
            else:
                answers[asked] = hit
            self._spent[rows] += asked.sum(1)
        return answers, asked

    def one(self, rows: Tensor, points: Tensor) -> Tensor:
        return self.ask(rows, points[:, None])[0].squeeze(1)


class _Walk:
    """Where R rows are on the boundary, and the nearest adversarial example that each has met."""

    def __init__(self, door: _Door, x: Tensor, ball: Ball, gamma: float, seed: int) -> None:
        self._door, self._x, self._ball = door, x, ball
        self._radius, self._seed = ball.radii(x).flatten(), seed
        self._dice = Dice(torch.zeros(1, 1, device=x.device), seed)
        self._size = math.prod(x.shape[1:])
        finest = math.ceil(-math.log2(torch.finfo(x.dtype).eps))
        depth = (1.5 if ball.norm == "l2" else 2.0) * math.log2(self._size) - math.log2(gamma)
        self._bisections = max(1, min(finest, math.ceil(depth)))
        self._gamma, self._turn = gamma, 0
        self._rows = torch.arange(len(x), device=x.device)
        self._here, self._far = x.clone(), x.new_zeros(len(x))
        self.found, self._nearest = x.clone(), x.new_full((len(x),), torch.inf)

    def start(self, donors: Tensor, tries: int) -> None:
        """Find a first adversarial example for every row, and go from it to the boundary."""
        rows, x = self._rows, self._x
        already = self._door.one(rows, x)
        self._nearest[already] = 0
        todo, begun = rows[~already], torch.zeros_like(already)
        for place in range(donors.shape[1]):
            able = todo[~donors[todo, place].flatten(1).isnan().any(1)]
            able = able[~begun[able]]
            hit = self._door.one(able, donors[able, place])
            self._here[able[hit]], begun[able[hit]] = donors[able[hit], place], True
        todo = todo[~begun[todo]]
        dice = Dice(x[todo], self._seed)
        for turn in range(tries):
            if len(todo) == 0 or not bool((self._door.left(todo) > 0).any()):
                break
            noise = dice.uniform(*x.shape[1:]).to(x) ** CONTRASTS[turn % len(CONTRASTS)]
            hit = self._door.one(todo, noise)
            self._here[todo[hit]], begun[todo[hit]] = noise[hit], True
            dice.keep(~hit)
            todo = todo[~hit]
        self._rows = rows[begun]
        self._here = self._here[begun]
        self._arrive(self._here, torch.ones_like(self._rows, dtype=torch.bool))

    def compete(self, starts: int, keep: int) -> None:
        """Begin where the boundary is crossed first out of `starts` directions of noise, if that is nearer."""
        rows, x = self._rows, self._x[self._rows][:, None]
        if starts == 0 or len(rows) == 0:
            return
        noise = Dice(x, self._seed + 1_000_003).uniform(starts, *x.shape[2:]).to(x)
        for place, contrast in enumerate(CONTRASTS):
            noise[:, place :: len(CONTRASTS)] **= contrast
        full = self._ball.size((noise - x).flatten(0, 1)).view(len(rows), starts)
        able = torch.ones_like(full, dtype=torch.bool)
        low, high, moved = torch.zeros_like(self._far), self._far.clone(), self._here.clone()
        went = torch.zeros_like(rows, dtype=torch.bool)
        for _ in range(ROUNDS):
            middle = (low + high) / 2
            if self._ball.norm == "l2":
                share = (middle[:, None] / full.clamp_min(1e-12)).clamp_max(1)
                probe = x + share.view(*share.shape, *[1] * (x.ndim - 2)) * (noise - x)
            else:
                reach = self._wide(middle)[:, None]
                probe = torch.maximum(torch.minimum(noise, x + reach), x - reach)
            hit, _ = self._door.ask(rows, probe.clamp_(0, 1), keep, able)
            won = hit.any(1)
            first = hit.to(torch.uint8).argmax(1)
            moved = torch.where(self._wide(won), probe[torch.arange(len(rows), device=x.device), first], moved)
            able = torch.where(won[:, None], hit, able)
            low, high = torch.where(won, low, middle), torch.where(won, middle, high)
            went |= won
        self._arrive(moved, went)

    def step(self, samples: int, most: int) -> bool:
        """One iteration for every row that still walks; False when none does."""
        self._turn += 1
        keep = self._bisections + 4
        near = self._nearest[self._rows]
        stay = (near > 0) & ~((near <= self._radius[self._rows]) & self._radius[self._rows].isfinite())
        stay &= self._door.left(self._rows) >= keep + min(FEWEST, samples)
        if not bool(stay.all()):
            self._rows, self._here, self._far = self._rows[stay], self._here[stay], self._far[stay]
        if len(self._rows) == 0:
            return False
        many = int(min(samples * math.sqrt(self._turn), most))
        direction = self._estimate(many, keep)
        if self._ball.norm == "linf":
            direction = direction.sign()
        length = self._far / math.sqrt(self._turn)
        moved, todo = self._here.clone(), torch.arange(len(self._rows), device=self._x.device)
        for _ in range(HALVINGS):
            probe = (self._here[todo] + self._wide(length[todo]) * direction[todo]).clamp_(0, 1)
            hit = self._door.one(self._rows[todo], probe)
            moved[todo[hit]] = probe[hit]
            todo = todo[~hit]
            if len(todo) == 0:
                break
            length[todo] /= 2
        went = torch.ones_like(self._rows, dtype=torch.bool)
        went[todo] = False
        self._arrive(moved, went)
        return True

    def settle(self) -> None:
        """Make the found perturbations a little longer where they then stay adversarial and in the ball."""
        rows = (self._nearest.isfinite() & (self._nearest > 0)).nonzero().squeeze(1)
        x, limit = self._x[rows], self._ball.rows(rows)
        longer = (x + (self.found[rows] - x) * (1 + NUDGE)).clamp_(0, 1)
        fits = limit.size(longer - x) <= self._radius[rows]
        rows, longer = rows[fits], longer[fits]
        hit = self._door.one(rows, longer)
        self.found[rows[hit]] = longer[hit]

    def _arrive(self, moved: Tensor, went: Tensor) -> None:
        """Search between the clean rows and their adversarial `moved` for the boundary, where `went`; stand there."""
        rows, clean, edge = self._rows[went], self._x[self._rows[went]], moved[went]
        low, high = self._x.new_zeros(len(rows)), self._x.new_ones(len(rows))
        full = self._wide(self._ball.size(edge - clean))
        outer = edge
        for _ in range(self._bisections if len(rows) > 0 else 0):
            middle = (low + high) / 2
            if self._ball.norm == "l2":
                probe = clean + self._wide(middle) * (outer - clean)
            else:
                reach = self._wide(middle) * full
                probe = torch.maximum(torch.minimum(outer, clean + reach), clean - reach)
            probe.clamp_(0, 1)
            hit = self._door.one(rows, probe)
            edge = torch.where(self._wide(hit), probe, edge)
            low, high = torch.where(hit, low, middle), torch.where(hit, middle, high)
        self._here = self._here.clone()
        self._here[went] = edge
        self._far = self._ball.size(self._here - self._x[self._rows])
        better = self._far < self._nearest[self._rows]
        self.found[self._rows[better]] = self._here[better]
        self._nearest[self._rows[better]] = self._far[better]

    def _estimate(self, many: int, keep: int) -> Tensor:
        """The direction `(R, ...)` in which the adversarial side lies, from `many` labels around every row."""
        here = self._here
        rough = torch.finfo(here.dtype).eps * 32 * math.sqrt(self._size)
        reach = torch.full_like(self._far, 0.1) if self._turn == 1 else self._far * self._gamma / self._size
        reach = reach.clamp_min(rough).view(-1, 1, *[1] * (here.ndim - 1))
        agreed, all_of_it = here.new_zeros(len(here), self._size), here.new_zeros(len(here), self._size)
        votes, asks = here.new_zeros(len(here)), here.new_zeros(len(here))
        for start in range(0, many, _chunk(self._size)):
            few = min(_chunk(self._size), many - start)
            probe = (here[:, None] + reach * self._directions(few)).clamp_(0, 1)
            hit, asked = self._door.ask(self._rows, probe, keep)
            went = (probe - here[:, None]).flatten(2)
            vote = (hit.to(here) * 2 - 1) * asked
            agreed += torch.bmm(vote[:, None], went).squeeze(1)
            all_of_it += torch.bmm(asked.to(here)[:, None], went).squeeze(1)
            votes, asks = votes + vote.sum(1), asks + asked.sum(1)
        mean = (votes / asks.clamp_min(1))[:, None]
        flat = torch.where(mean.abs() == 1, agreed, agreed - mean * all_of_it)
        return (flat / flat.norm(dim=1, keepdim=True).clamp_min(torch.finfo(here.dtype).tiny)).view_as(here)

    def _directions(self, many: int) -> Tensor:
        shape = (many, *self._x.shape[1:])
        drawn = self._dice.normal(*shape) if self._ball.norm == "l2" else self._dice.uniform(*shape) * 2 - 1
        flat = drawn[0].to(self._x).flatten(1)
        return (flat / flat.norm(dim=1, keepdim=True).clamp_min(1e-12)).view(shape)

    def _wide(self, values: Tensor) -> Tensor:
        return values.view(-1, *[1] * (self._x.ndim - 1))
