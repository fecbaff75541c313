"""Square Attack.

Andriushchenko, Croce, Flammarion and Hein, "Square Attack: a query-efficient black-box adversarial attack via random
search", ECCV 2020, https://arxiv.org/abs/1912.00049; its l1 version: Croce and Hein, ICML 2021,
https://arxiv.org/abs/2103.01208.

Differs from the papers: squares are drawn per row; the margin is taken between logarithms of the scores (it is the
margin of the logits, and keeps its resolution where a score is close to 1); a proposal whose answer is known, because
it changes nothing or was turned down at the same point before, counts as a query but is not asked. Inputs `(B, D)` and
`(B, C, D)` are searched with windows of a length instead of squares.

Tags: atlas:AML.T0043.001, atlas:AML.T0015, nist-ai-100-2:NISTAML.022, owasp-ml:ML01, cwe:1039.
"""

from __future__ import annotations

import torch
from torch import Tensor

from buckler.dice import Dice
from buckler.evasion._boxed import bounded, l1_in_box
from buckler.evasion._search import Goal, aim
from buckler.kinds import Perturbed
from buckler.target import QueryBudgetExceeded, ScoreOracle
from buckler.threat import Ball

_BLOCK = 50
"""Draws are made for this many iterations at a time."""
_TOGETHER = 256
"""How many proposals are asked at once at most where a row asks several ahead."""


def square(
    oracle: ScoreOracle,
    x: Tensor,
    y: Tensor,
    *,
    ball: Ball,
    queries: int = 5000,
    p: float = 0.8,
    rescale: bool = True,
    ahead: int = 1,
    goal: Goal = None,
    seed: int = 0,
) -> Perturbed:
    """Change a random square at a time and keep what lowers the margin.

    `oracle` reveals scores or logits; `x` `(B, C, H, W)`, `(B, C, D)` or `(B, D)` in [0, 1], `y` `(B,)`; `ball` linf,
    l2 or l1. At most `queries` answers per row are paid for, and fewer are asked; `p` is the share of the input that
    the first squares cover, halved on a schedule made for 10,000 queries, which `rescale` fits to `queries`. With
    `ahead` above 1 up to that many of a row's next proposals are asked at once (linf), as if each before were turned
    down, and those after one that is kept are forgotten: the same search in fewer, larger batches, for those to whom
    queries are free. A row ends at its first success. Returns `(B, ...)`: an adversarial example where one was found,
    else the lowest margin met; when the oracle's own budget ends, the best so far. Raises `ValueError` for other
    shapes, l0, or labels only.
    """
    if ball.norm == "l0":
        raise ValueError("expected a ball in linf, l2 or l1, got l0: evasion/fmn attacks l0")
    if x.ndim not in (2, 3, 4):
        raise ValueError(f"expected inputs (B, D), (B, C, D) or (B, C, H, W), got {tuple(x.shape)}: reshape them")
    if oracle.reveals not in ("scores", "logits"):
        raise ValueError(f"expected an oracle that reveals scores or logits, got {oracle.reveals}: attack labels with"
                         " evasion/hop_skip_jump")  # fmt: skip
    clean = x.reshape(len(x), 1 if x.ndim == 2 else x.shape[1], 1 if x.ndim < 4 else x.shape[2], x.shape[-1])
    search = _Search(oracle, clean, y, aim(goal, y), bounded(ball, x), Dice(x, seed), x.shape)
    try:
        if len(x):
            search.begin()
            if ahead > 1 and ball.norm == "linf":
                search.go_ahead(queries, p, rescale, ahead)
            else:
                search.go(queries, p, rescale)
    except QueryBudgetExceeded:
        search.put_back()
    return search.found.view_as(x)


class _Search:
    """The rows still robust, `(B, C, H, W)`: best points, margins, and proposals turned down since the last gain."""

    def __init__(
        self, oracle: ScoreOracle, x: Tensor, y: Tensor, goals: Tensor | None, ball: Ball, dice: Dice, shape: torch.Size
    ) -> None:
        self.oracle, self.shape, self.logits = oracle, shape, oracle.reveals == "logits"
        self.clean, self.label, self.goals, self.ball, self.dice = x, y, goals, ball, dice
        self.rows = torch.arange(len(x), device=x.device)
        self.found, self.best = x.clone(), x
        self.margin = x.new_full((len(x),), torch.inf)
        self.known: Tensor | None = None
        self.next = torch.zeros_like(y)
        self.side = torch.zeros_like(y)

    def ask(self, points: Tensor, index: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The margin of every point, and whether it fools: `(B,)`, `(B,)`."""
        answer = self.oracle(points.reshape(-1, *self.shape[1:]))
        label = self.label if index is None else self.label[index]
        goals = self.goals if index is None or self.goals is None else self.goals[index]
        value = answer if self.logits else answer.clamp_min(torch.finfo(answer.dtype).tiny).log()
        sought = label if goals is None else goals
        own = value.gather(1, sought[:, None]).squeeze(1)
        other = value.scatter(1, sought[:, None], -torch.inf).amax(1)
        if goals is None:
            return own - other, answer.argmax(1) != label
        return other - own, answer.argmax(1) == goals

    def take(self, points: Tensor, index: Tensor, margin: Tensor, hit: Tensor) -> None:
        """Keep what is better; rows that are fooled leave."""
        gain = hit | (margin < self.margin[index])
        where = index[gain]
        if len(where) == 0:
            return
        self.best = self.best.index_copy(0, where, points[gain])
        self.margin = self.margin.index_copy(0, where, margin[gain])
        if self.known is not None:
            self.known[where] = False
        if bool(hit.any()):
            gone = index[hit]
            self.found[self.rows[gone]] = self.best[gone]
            keep = torch.ones_like(self.label, dtype=torch.bool)
            keep[gone] = False
            self.rows, self.clean, self.label, self.best = (
                part[keep] for part in (self.rows, self.clean, self.label, self.best)
            )
            self.margin, self.ball = self.margin[keep], self.ball.rows(keep)
            self.goals = None if self.goals is None else self.goals[keep]
            self.known = None if self.known is None else self.known[keep]
            self.dice.keep(keep)
            self.drawn, self.next, self.side = self.drawn[keep], self.next[keep], self.side[keep]

    def put_back(self) -> None:
        """Write the best points of rows that are not fooled."""
        self.found[self.rows] = self.best

    def begin(self) -> None:
        """Vertical stripes (linf), or a grid of bumps of random sign (l2, l1)."""
        n, channels, height, width = self.clean.shape
        radii = self.ball.radii(self.clean)
        self.drawn = self.clean.new_zeros(n, 0)
        if self.ball.norm == "linf":
            start = (self.clean + radii * self.dice.signs(channels, 1, width).to(self.clean)).clamp(0, 1)
        else:
            tall, wide = max(height // 5, 1), max(width // 5, 1)
            down, across = height // tall, width // wide
            signs = self.dice.signs(channels, down, across).to(self.clean)
            bump = _bump(tall, wide, self.ball.norm).to(self.clean)
            grid = (signs[:, :, :, None, :, None] * bump[None, None, None, :, None, :]).reshape(
                n, channels, down * tall, across * wide
            )
            delta = torch.zeros_like(self.clean)
            top, left = (height - down * tall) // 2, (width - across * wide) // 2
            delta[:, :, top : top + down * tall, left : left + across * wide] = grid
            start = self._stretched(delta, self.clean, radii)
        margin, hit = self.ask(start)
        self.best, self.margin = start, torch.full_like(margin, torch.inf)
        self.take(start, torch.arange(n, device=start.device), margin, hit)

    def _stretched(self, delta: Tensor, clean: Tensor, radii: Tensor) -> Tensor:
        """The change at the full radius, in the box."""
        if self.ball.norm == "l1":
            change = l1_in_box(clean.flatten(1), delta.flatten(1), radii.flatten(1))
            return clean + change.view_as(clean)
        size = delta.flatten(1).norm(dim=1).clamp_min(1e-12).view_as(radii)
        return (clean + delta / size * radii).clamp(0, 1)

    def go(self, queries: int, p: float, rescale: bool) -> None:
        channels, height, width = self.clean.shape[1:]
        linf, side = self.ball.norm == "linf", (0, 0)
        many = 2 + channels if linf else 5 + channels
        for count in range(1, queries):
            if len(self.rows) == 0:
                return
            place = (count - 1) % _BLOCK
            if place == 0:
                self.drawn = self.dice.uniform(_BLOCK, many).to(self.clean.device)
            drawn = self.drawn[:, place]
            share = p / 2 ** sum(count > end for end in _ends(queries if rescale else 10_000))
            before, side = side, _side(share, height, width, odd=not linf)
            if linf:
                positions = (height - side[0] + 1) * (width - side[1] + 1)
                if side != before:
                    kinds = positions * 2**channels if channels <= 8 else 4 * queries + 1
                    worth = kinds <= 4 * queries
                    self.known = drawn.new_zeros(len(drawn), kinds, dtype=torch.bool) if worth else None
                points, index = self._repaint(drawn, side)
            else:
                points, index = self._reshape(drawn, side)
            if len(index):
                self.take(points, index, *self.ask(points, index))
        self.put_back()

    def go_ahead(self, queries: int, p: float, rescale: bool, most: int) -> None:
        """The same as `go` in linf, with a pointer per row: `next` is the proposal of the block that it stands at."""
        channels, height, width = self.clean.shape[1:]
        ends, kept = _ends(queries if rescale else 10_000), 0.5
        kinds = height * width * 2**channels
        self.known = self.clean.new_zeros(len(self.rows), kinds, dtype=torch.bool) if kinds <= 4 * queries else None
        for begin in range(1, queries, _BLOCK):
            span = min(_BLOCK, queries - begin)
            shares = [p / 2 ** sum(count > end for end in ends) for count in range(begin, begin + span)]
            sides = torch.tensor([_side(share, height, width, odd=False) for share in shares], device=self.clean.device)
            self.drawn = self.dice.uniform(_BLOCK, 2 + channels).to(self.clean.device)
            self.next = torch.zeros_like(self.label)
            gains = 0
            while len(active := (self.next < span).nonzero().squeeze(1)):
                many = max(1, min(most, _TOGETHER // len(active), int(0.7 / kept)))
                gains += self._round(active, sides, span, many)
            kept = max(gains / max(1, span * len(self.rows)), 1e-3)
            if len(self.rows) == 0:
                return
        self.put_back()

    def _round(self, active: Tensor, sides: Tensor, span: int, many: int) -> int:
        """Ask the next `many` proposals of every active row; keep the first that gains; how many rows gained."""
        channels, height, width = self.clean.shape[1:]
        steps = self.next[active][:, None] + torch.arange(many, device=active.device)
        valid = steps < span
        steps = steps.clamp(max=span - 1)
        tall, wide = sides[steps].unbind(2)
        valid &= wide == wide[:, :1]
        drawn = self.drawn[active[:, None], steps]
        top, left = (drawn[..., 0] * (height - tall + 1)).long(), (drawn[..., 1] * (width - wide + 1)).long()
        positive = drawn[..., 2:] < 0.5
        fresh = self.side[active] != wide[:, 0]
        self.side[active] = wide[:, 0]
        kind = (top * width + left) * 2**channels + (positive * 2 ** torch.arange(channels, device=top.device)).sum(2)
        wanted = valid
        if self.known is not None:
            self.known[active[fresh]] = False
            wanted = valid & ~self.known[active[:, None], kind]
        place = wanted.flatten().nonzero().squeeze(1)
        row = active.repeat_interleave(many)[place]
        clean, best = self.clean[row], self.best[row]
        inside = _window(top.flatten()[place], tall.flatten()[place][:, None], height)[:, None, :, None]
        inside = inside & _window(left.flatten()[place], wide.flatten()[place][:, None], width)[:, None, None, :]
        signed = torch.where(positive.flatten(0, 1)[place], 1.0, -1.0).to(clean)[:, :, None, None]
        points = torch.where(inside, (clean + signed * self.ball.rows(row).radii(clean)).clamp_(0, 1), best)
        changed = (points != best).flatten(1).any(1)
        points, row, asked = points[changed], row[changed], place[changed]
        gained = torch.zeros_like(wanted).flatten()
        margin, hit = self.margin.new_zeros(0), gained[:0]
        if len(row):
            margin, hit = self.ask(points, row)
            gained[asked] = hit | (margin < self.margin[row])
        gained = gained.view_as(wanted)
        wins = gained.any(1)
        first = torch.where(wins, gained.int().argmax(1), many)
        if self.known is not None:
            turned_down = wanted & (torch.arange(many, device=first.device) < first[:, None])
            self.known[active[:, None].expand_as(kind)[turned_down], kind[turned_down]] = True
        self.next[active] += torch.where(wins, first + 1, valid.sum(1))
        slot = torch.full_like(wanted, -1, dtype=torch.long).flatten()
        slot[asked] = torch.arange(len(asked), device=slot.device)
        chosen = slot.view_as(wanted).gather(1, first.clamp(max=many - 1)[:, None]).squeeze(1)[wins]
        self.take(points[chosen], active[wins], margin[chosen], hit[chosen])
        return len(chosen)

    def _repaint(self, drawn: Tensor, side: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Set a window to clean + or - radius, one sign per channel; only rows whose answer is not known."""
        channels, height, width = self.clean.shape[1:]
        down, across = height - side[0] + 1, width - side[1] + 1
        top, left = (drawn[:, 0] * down).long(), (drawn[:, 1] * across).long()
        positive = drawn[:, 2:] < 0.5
        index = torch.arange(len(drawn), device=drawn.device)
        if self.known is not None:
            weights = 2 ** torch.arange(channels, device=drawn.device)
            kind = (top * across + left) * 2**channels + (positive * weights).sum(1)
            index = (~self.known.gather(1, kind[:, None]).squeeze(1)).nonzero().squeeze(1)
            self.known[index, kind[index]] = True
            if len(index) < len(drawn):
                top, left, positive = top[index], left[index], positive[index]
        clean, best = self.clean[index], self.best[index]
        inside = _window(top, side[0], height)[:, None, :, None] & _window(left, side[1], width)[:, None, None, :]
        radii = self.ball.rows(index).radii(clean)
        signed = torch.where(positive, 1.0, -1.0).to(clean)[:, :, None, None] * radii
        points = torch.where(inside, (clean + signed).clamp_(0, 1), best)
        changed = (points != best).flatten(1).any(1)
        if bool(changed.all()):
            return points, index
        return points[changed], index[changed]

    def _reshape(self, drawn: Tensor, side: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Move the change of a second window into a first one, in a new shape (algorithm 3 of the paper)."""
        n, channels, height, width = self.clean.shape
        radii, norm = self.ball.radii(self.clean), self.ball.norm
        delta = self.best - self.clean
        corners = drawn[:, :4] * drawn.new_tensor([height - side[0] + 1, width - side[1] + 1] * 2)
        corners = corners.long()
        down = torch.arange(side[0], device=drawn.device)
        across = torch.arange(side[1], device=drawn.device)

        def cells(top: Tensor, left: Tensor) -> Tensor:
            flat = (top[:, None] + down)[:, :, None] * width + (left[:, None] + across)[:, None, :]
            return flat.flatten(1)[:, None, :].expand(n, channels, -1)

        first, second = cells(corners[:, 0], corners[:, 1]), cells(corners[:, 2], corners[:, 3])
        flat = delta.flatten(2)
        inside = torch.zeros_like(flat, dtype=torch.bool).scatter_(2, first, True).scatter_(2, second, True)
        bump = _bump(side[0], side[1], norm).to(flat)
        turned = _bump(side[1], side[0], norm).to(flat).t()
        shape = torch.where(drawn[:, 4, None] < 0.5, bump.flatten(), turned.flatten())[:, None]
        signs = torch.where(drawn[:, 5:] < 0.5, 1.0, -1.0).to(flat)[:, :, None]
        old = flat.gather(2, first)
        new = shape * signs + old / _size(old, norm).clamp_min(1e-12)
        within = torch.where(inside, flat, 0)
        if norm == "l2":
            unused = (radii.flatten() ** 2 - flat.flatten(1).norm(dim=1) ** 2).clamp_min(0)[:, None, None]
            room = (_size(within, norm) ** 2 + unused / channels).sqrt()
        else:
            unused = (radii.flatten() - flat.flatten(1).abs().sum(1)).clamp_min(0)[:, None, None]
            room = _size(within, norm) + unused / channels
        new = new / _size(new, norm).clamp_min(1e-12) * room
        moved = flat.scatter(2, second, 0.0).scatter(2, first, new)
        points = self._stretched(moved.view_as(delta), self.clean, radii)
        return points, torch.arange(n, device=drawn.device)


def _ends(queries: int) -> list[float]:
    """After which queries the share of the input that a square covers is halved."""
    return [end * queries / 10_000 for end in (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)]


def _side(share: float, height: int, width: int, *, odd: bool) -> tuple[int, int]:
    """The window: a square that covers `share` of the image, or of an image of one line, that share of the line."""
    if height == 1:
        return 1, min(width, max(round(share * width), 3 if odd else 1))
    side = max(round((share * height * width) ** 0.5), 3 if odd else 1)
    side += 1 if odd and side % 2 == 0 else 0
    return min(side, height, width), min(side, height, width)


def _window(start: Tensor, length: int | Tensor, size: int) -> Tensor:
    place = torch.arange(size, device=start.device)
    return (place >= start[:, None]) & (place < start[:, None] + length)


def _size(part: Tensor, norm: str) -> Tensor:
    return part.norm(dim=2, keepdim=True) if norm == "l2" else part.abs().sum(2, keepdim=True)


def _bump(tall: int, wide: int, norm: str) -> Tensor:
    """Two hills of opposite sign side by side, of norm 1: `(tall, wide)`."""
    if tall == 1 and wide == 1:
        return torch.ones(1, 1)
    if tall == 1:
        halves = [_hill(1, wide // 2, norm), -_hill(1, wide - wide // 2, norm)]
        bump = torch.cat(halves, 1)
    else:
        bump = torch.cat([_hill(tall // 2, wide, norm), -_hill(tall - tall // 2, wide, norm)], 0)
    return bump / (bump.norm() if norm == "l2" else bump.abs().sum())


def _hill(tall: int, wide: int, norm: str) -> Tensor:
    """Nested rectangles whose heights add up: 1 / (m + 1)^2 for the m-th from the centre (^4 in l1)."""
    hill = torch.zeros(tall, wide)
    middle, centre = tall // 2, wide // 2
    for m in range(max(middle, centre) + 1):
        rows = slice(max(middle - m, 0), min(middle + m + 1, tall))
        columns = slice(max(centre - m, 0), min(centre + m + 1, wide))
        hill[rows, columns] += (m + 1.0) ** (-2 if norm == "l2" else -4)
    return hill / (hill.norm() if norm == "l2" else hill.abs().sum())
