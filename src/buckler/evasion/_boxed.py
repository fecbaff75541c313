"""Projections that honour the unit box exactly: onto the part of an l1 ball, or of a hyperplane, that lies in [0, 1].

All work on rows flattened to `(B, D)`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from buckler.threat import Ball, Norm

_ROUNDS = 30
"""Newton's method on a concave piecewise linear function is finite; in practice it ends within ten rounds."""


def bounded(ball: Ball, x: Tensor) -> Ball:
    """The same limit in the box, with a radius per row that is never longer than the box: infinity becomes a number."""
    size = x[0].numel() if len(x) else 1
    longest = {"linf": 1.0, "l2": size**0.5}.get(ball.norm, float(size))
    return Ball(ball.norm, ball.radii(x).flatten().clamp(max=longest))


def l1_in_box(x: Tensor, delta: Tensor, radius: Tensor) -> Tensor:
    """The change closest to `delta` with l1 norm at most `radius` `(B, 1)` that keeps `x` in [0, 1].

    Croce and Hein (ICML 2021, https://arxiv.org/abs/2103.01208): every element is soft-thresholded by the same amount
    and cut at the box; the amount is found among the 2 D breakpoints.
    """
    size = delta.abs()
    room = torch.where(delta > 0, 1 - x, x).clamp_min(0)
    room = torch.minimum(room, size)
    # lowering the threshold from infinity, an element starts to count at its size and stops at its size less its room
    knots, order = torch.cat([size, size - room], 1).sort(1, descending=True)
    slope = torch.where(order < x.shape[1], 1.0, -1.0).to(x).cumsum(1)
    spent = torch.zeros_like(knots)
    spent[:, 1:] = (slope[:, :-1] * (knots[:, :-1] - knots[:, 1:])).cumsum(1)
    last = ((spent <= radius).sum(1, keepdim=True) - 1).clamp_min(0)
    over = (radius - spent.gather(1, last)).clamp_min(0) / slope.gather(1, last).clamp_min(1)
    threshold = (knots.gather(1, last) - over).clamp_min(0)
    threshold = torch.where(room.sum(1, keepdim=True) <= radius, torch.zeros_like(threshold), threshold)
    return delta.sign() * torch.minimum((size - threshold).clamp_min(0), room)


def to_hyperplane(norm: Norm, x: Tensor, slope: Tensor, value: Tensor) -> Tensor:
    """The smallest change of `x` in `norm` (linf, l2 or l1), box kept, after which `value + slope . change` is zero.

    `slope` `(B, D)`, `value` `(B,)`. Where no point of the box reaches zero, the change goes as far as the box lets it
    (Croce and Hein, ICML 2020, https://arxiv.org/abs/1907.02044).
    """
    heading = -slope.sign() * value.sign()[:, None]
    room = torch.where(heading > 0, 1 - x, x).clamp_min(0) * heading.abs()
    gain, need = slope.abs(), value.abs()[:, None]
    if norm == "l1":
        return heading * _steepest_first(gain, room, need)
    pace = torch.ones_like(gain) if norm == "linf" else gain
    return heading * _all_together(gain, room, need, pace)


def _steepest_first(gain: Tensor, room: Tensor, need: Tensor) -> Tensor:
    ordered, order = gain.sort(1, descending=True)
    space = room.gather(1, order)
    worth = ordered * space
    before = worth.cumsum(1) - worth
    used = ((need - before).clamp_min(0) / ordered.clamp_min(1e-30)).minimum(space)
    return torch.zeros_like(room).scatter(1, order, used)


def _all_together(gain: Tensor, room: Tensor, need: Tensor, pace: Tensor) -> Tensor:
    """Every element moves by `pace` times the least common amount, or by its room, so that the gains meet the need."""
    ends = room / pace.clamp_min(1e-30)
    rate = gain * pace
    worth = gain * room
    amount = torch.zeros_like(need)
    for _ in range(_ROUNDS):
        free = ends > amount
        left = need - torch.where(free, 0, worth).sum(1, keepdim=True)
        total = torch.where(free, rate, 0).sum(1, keepdim=True)
        following = torch.where(total > 0, left / total.clamp_min(1e-30), torch.inf)
        following = torch.maximum(following, amount)
        done = following <= amount
        amount = following
        if bool(done.all()):
            break
    return torch.minimum(pace * amount.clamp_max(3e38), room)
