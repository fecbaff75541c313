"""Fast gradient sign method.

Goodfellow, Shlens and Szegedy, "Explaining and harnessing adversarial examples", ICLR 2015,
https://arxiv.org/abs/1412.6572.

Differs from the paper: the paper's step maximises the linearised loss in the linf ball and is clipped to the box; here
the step is the exact maximiser of the linearised loss in the ball and the box together, which for linf is the paper's
step and which has a closed form for l2 and l1 too. A row that is misclassified as it is stays as it is.

Tags: atlas:AML.T0043.000, atlas:AML.T0015, nist-ai-100-2:NISTAML.022, owasp-ml:ML01, cwe:1039.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from buckler.evasion._search import Goal, Objective, aim, ascend, fooled, gradient
from buckler.kinds import Perturbed
from buckler.target import frozen
from buckler.threat import Ball


def fgsm(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    ball: Ball,
    objective: Objective = "ce",
    goal: Goal = None,
    stop: bool = True,
) -> Perturbed:
    """Take the one step that gains most on the linearised loss.

    `x` `(B, ...)` in [0, 1], `y` `(B,)`; `ball` linf, l2 or l1, with any radius (a `ValueError` for l0). With `stop` a
    row that is fooled already is returned unchanged; without, every row takes its step, which is what an attack through
    a surrogate needs. Returns `(B, ...)`.
    """
    if ball.norm == "l0":
        raise ValueError("expected a ball in linf, l2 or l1, got l0: evasion/fmn attacks l0")
    goals = aim(goal, y)
    with frozen(model):
        logits, _, grad = gradient(model, x, lambda out: ascend(objective, out, y, goals))
    slope = grad.flatten(1)
    room = torch.where(slope > 0, 1 - x.flatten(1), x.flatten(1)) * (slope != 0)
    radii = ball.radii(x).flatten(1)
    if ball.norm == "linf":
        reach = torch.minimum(room, radii)
    else:
        fill = _fill_l2 if ball.norm == "l2" else _fill_l1
        reach = fill(slope.abs().double(), room.double(), radii.double()).to(x)
    moved = ball.clip(x, x + (slope.sign() * reach).view_as(x))
    return torch.where(fooled(logits, y, goals).view_as(ball.radii(x)), x, moved) if stop else moved


def _fill_l1(slope: Tensor, room: Tensor, radii: Tensor) -> Tensor:
    """Spend the radius on the steepest elements, each as far as it has room."""
    order = slope.argsort(1, descending=True)
    room = room.gather(1, order)
    spent = room.cumsum(1) - room
    reach = torch.minimum((radii - spent).clamp_min(0), room)
    return torch.zeros_like(reach).scatter(1, order, reach)


def _fill_l2(slope: Tensor, room: Tensor, radii: Tensor) -> Tensor:
    """Go along the slope; elements that run out of room leave their share of the radius to the others."""
    slope = slope / slope.amax(1, keepdim=True).clamp_min(torch.finfo(slope.dtype).tiny)
    full = room / slope.clamp_min(1e-150)
    order = full.argsort(1)
    length, wall, steep = full.gather(1, order), room.gather(1, order).square(), slope.gather(1, order).square()
    before = wall.cumsum(1)
    after = steep.flip(1).cumsum(1).flip(1) - steep
    stuck = (before + length.square() * after <= radii.square()).sum(1, keepdim=True)
    padded = torch.cat((torch.zeros_like(before[:, :1]), before), 1)
    rest = torch.cat((steep.flip(1).cumsum(1).flip(1), torch.zeros_like(before[:, :1])), 1)
    left = (radii.square() - padded.gather(1, stuck)).clamp_min(0)
    scale = (left / rest.gather(1, stuck).clamp_min(1e-300)).sqrt()
    return torch.minimum(torch.where(stuck == slope.shape[1], torch.inf, scale) * slope, room).nan_to_num(nan=0.0)
