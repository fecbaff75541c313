"""Fast minimum norm: the closest adversarial example in linf, l2, l1 or l0.

Pintor, Roli, Brendel and Biggio, "Fast minimum-norm adversarial attacks through adaptive norm constraints", NeurIPS
2021, https://arxiv.org/abs/2102.12827.

Differs from the paper, each time because it was measured to find smaller norms at the same number of steps:
- until a row's first adversarial example, its bound grows by gamma at least. In the paper it is the linear estimate of
  the distance alone, which can stay short of the boundary for ever, and many rows then fail;
- the paper's loss, the difference between the true logit and the best other, sees one other class at a time. Here the
  best other is a soft maximum that hardens as the steps pass, in units of the spread of the row's clean logits, so that
  scaling the logits changes nothing (`softness=0` is the paper's loss);
- a step's length is a share of the bound, not absolute, and for linf it goes along the sign of the gradient;
- for l0 the box comes before the projection, and the projection keeps the elements whose change gains most (change
  times slope), not the largest changes.
Rows leave the batch when no smaller norm is possible (misclassified as they are; one element in l0), or when their best
is inside a finite radius.

Tags: atlas:AML.T0043.000, atlas:AML.T0015, nist-ai-100-2:NISTAML.022, owasp-ml:ML01, cwe:1039.
"""

from __future__ import annotations

import math
from functools import partial

import torch
from torch import Tensor, nn

from buckler.evasion._closest import Closest
from buckler.evasion._search import Goal, aim, ascend, fooled, gradient
from buckler.kinds import Perturbed
from buckler.target import frozen
from buckler.threat import Ball, _project_l1


def fmn(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    ball: Ball,
    steps: int = 100,
    step: float = 1.0,
    gamma: float = 0.05,
    softness: float = 1 / 3,
    goal: Goal = None,
) -> Perturbed:
    """Walk along the gradient in a ball that shrinks while the row is adversarial and grows while it is not.

    `x` `(B, ...)` in [0, 1], `y` `(B,)`; `ball` in any norm. With `radius=inf` the norm is minimised to the last of
    the `steps`; with a finite radius (per row if need be) a row ends at its first success inside it, and for linf and
    l2 the ball never passes it (for l1 and l0 it may on the way: that finds more).
    `step` is the first step's length as a share of the ball's radius (for l0: the root mean square change of an
    element) and falls to a hundredth of it; `gamma` is the first share by which the ball changes and falls to 0.001.
    Returns `(B, ...)`: the closest adversarial example found, else the clean row.
    """
    if steps < 1 or not 0 < gamma < 1 or softness < 0:
        raise ValueError(f"expected steps >= 1, 0 < gamma < 1, softness >= 0, got {steps}, {gamma}, {softness}")
    goals = aim(goal, y)
    closest = Closest.start(x, ball)
    clean, label, moved, delta = x, y, x.clone(), torch.zeros_like(x)
    farthest = _farthest(x, ball)
    if ball.norm in ("linf", "l2"):
        farthest = torch.minimum(farthest, closest.limit)
    bound = torch.ones_like(farthest) if ball.norm == "l0" else torch.zeros_like(farthest)
    size, met = torch.zeros_like(bound), torch.zeros(len(x), dtype=torch.bool, device=x.device)
    spread: Tensor | None = None
    with frozen(model):
        for count in range(steps):
            cosine = (1 + math.cos(math.pi * count / steps)) / 2
            length, rate = step * (0.01 + 0.99 * cosine), 0.001 + (gamma - 0.001) * cosine
            soft = softness / (1 + 10 * (1 - cosine))
            logits, _, grad = gradient(model, moved, partial(_lead, label=label, goals=goals, soft=soft, spread=spread))
            spread = _spread(logits) if spread is None else spread
            hit = fooled(logits, label, goals)
            closest.improve(moved, size, hit)
            stay = closest.leave(hit, count == 0)
            if stay is not None:
                clean, label, moved, delta, grad = clean[stay], label[stay], moved[stay], delta[stay], grad[stay]
                bound, farthest, size, met, hit = bound[stay], farthest[stay], size[stay], met[stay], hit[stay]
                logits, spread = logits[stay], spread[stay]
                goals = None if goals is None else goals[stay]
                if len(clean) == 0:
                    break
            met |= hit
            if ball.norm == "l0":
                bound = _count(bound, rate, hit, closest.best)
            else:
                gap = ascend("margin", logits, label, goals).abs() / _dual(grad, ball).clamp_min(1e-12)
                grown = bound * (1 + rate)
                away = torch.where(met, grown, torch.maximum(size + gap, grown))
                bound = torch.where(hit, torch.minimum(bound * (1 - rate), closest.best), away)
            bound = torch.minimum(bound, farthest)
            _walk(delta, clean, grad, length, bound, ball)
            torch.add(clean, delta, out=moved).clamp_(0, 1)
            torch.sub(moved, clean, out=delta)
            size = ball.size(delta)
    return closest.finish()


def _lead(logits: Tensor, label: Tensor, goals: Tensor | None, soft: float, spread: Tensor | None) -> Tensor:
    """How far the wanted side of the decision is ahead, `(B,)`, its leader taken softly."""
    if soft == 0:
        return ascend("margin", logits, label, goals)
    unit = _spread(logits) if spread is None else spread
    heat = (soft * unit).clamp_min(1e-12)
    aimed = label if goals is None else goals
    others = heat * (logits / heat[:, None]).scatter(1, aimed[:, None], -torch.inf).logsumexp(1)
    own = logits.gather(1, aimed[:, None]).squeeze(1)
    return others - own if goals is None else own - others


def _spread(logits: Tensor) -> Tensor:
    logits = logits.detach()
    return (logits - logits.mean(1, keepdim=True)).square().mean(1).sqrt()


def _farthest(x: Tensor, ball: Ball) -> Tensor:
    """The size of the largest change that stays in the box."""
    if ball.norm == "l0":
        return x.new_full((len(x),), x.flatten(1).shape[1])
    return ball.size(torch.maximum(x, 1 - x))


def _dual(grad: Tensor, ball: Ball) -> Tensor:
    flat = grad.flatten(1)
    return flat.norm(dim=1, p={"linf": 1, "l2": 2, "l1": math.inf}[ball.norm])


def _count(bound: Tensor, rate: float, hit: Tensor, best: Tensor) -> Tensor:
    """The next number of elements: at least one fewer after a success, at least one more otherwise."""
    fewer = torch.minimum(torch.minimum(bound - 1, (bound * (1 - rate)).floor()), best - 1)
    return torch.where(hit, fewer, torch.maximum(bound + 1, (bound * (1 + rate)).floor())).clamp_min(1)


def _walk(delta: Tensor, clean: Tensor, grad: Tensor, length: float, bound: Tensor, ball: Ball) -> None:
    """One step up the gradient and back into the ball of radius `bound`; `delta` is changed in place."""
    wide = bound.view(-1, *[1] * (delta.ndim - 1))
    if ball.norm == "linf":
        delta.addcmul_(grad.sign(), length * wide)
        torch.maximum(torch.minimum(delta, wide, out=delta), -wide, out=delta)
        return
    norm = grad.flatten(1).norm(dim=1).clamp_min(1e-12).view_as(wide)
    if ball.norm == "l0":
        delta.addcmul_(grad, length * delta.flatten(1).shape[1] ** 0.5 / norm).add_(clean).clamp_(0, 1).sub_(clean)
        order = (delta * grad).flatten(1).argsort(1, descending=True)
        chosen = torch.arange(order.shape[1], device=order.device) < bound[:, None]
        delta.mul_(torch.zeros_like(chosen.expand_as(order)).scatter(1, order, chosen.expand_as(order)).view_as(delta))
        return
    delta.addcmul_(grad, length * wide / norm)
    if ball.norm == "l2":
        delta.mul_((wide / ball.size(delta).clamp_min(1e-12).view_as(wide)).clamp_max(1))
    else:
        delta.copy_(_project_l1(delta, wide))
