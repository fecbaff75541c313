"""Decoupled direction and norm: the closest adversarial example in l2.

Rony, Hafemann, Oliveira, Ben Ayed, Sabourin and Granger, "Decoupling direction and norm for efficient gradient-based l2
adversarial attacks and defenses", CVPR 2019, https://arxiv.org/abs/1811.09600.

Differs from the paper: the gradient is that of the log-odds of the true label (log-sum-exp of the other logits less its
own) instead of the cross-entropy. The two differ by a positive factor per row, which the normalisation removes anyway;
but the factor is 0 in floating point where a model is very sure, and the attack would stand still. The result is not
rounded to 256 levels. Rows that are misclassified as they are, or already inside a finite radius, leave the batch.

Tags: atlas:AML.T0043.000, atlas:AML.T0015, nist-ai-100-2:NISTAML.022, owasp-ml:ML01, cwe:1039.
"""

from __future__ import annotations

import math
from functools import partial

import torch
from torch import Tensor, nn

from buckler.evasion._closest import Closest
from buckler.evasion._search import Goal, aim, fooled, gradient
from buckler.kinds import Perturbed
from buckler.target import frozen
from buckler.threat import Ball


def ddn(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    ball: Ball,
    steps: int = 100,
    gamma: float = 0.05,
    start: float = 1.0,
    goal: Goal = None,
) -> Perturbed:
    """Walk along the gradient on a sphere that shrinks by `gamma` while the row is adversarial and grows while not.

    `x` `(B, ...)` in [0, 1], `y` `(B,)`; `ball` l2 (a `ValueError` otherwise). With `radius=inf` the norm is minimised
    to the last of the `steps`; with a finite radius (per row if need be) the sphere never passes it and a row ends at
    its first success. `start` is the first sphere's radius; norms below start (1 - gamma)^steps are out of reach.
    Returns `(B, ...)`: the closest adversarial example found, else the clean row.
    """
    if ball.norm != "l2":
        raise ValueError(f"expected a ball in l2, got {ball.norm}: evasion/fmn minimises every norm")
    if steps < 1 or not 0 < gamma < 1:
        raise ValueError(f"expected steps >= 1 and gamma in (0, 1), got {steps} and {gamma}")
    goals = aim(goal, y)
    closest = Closest.start(x, ball)
    clean, label, moved, delta = x, y, x.clone(), torch.zeros_like(x)
    farthest = torch.minimum(ball.size(torch.maximum(x, 1 - x)), closest.limit)
    bound = farthest.clamp_max(start)
    size = torch.zeros_like(bound)
    wide = (-1, *[1] * (x.ndim - 1))
    with frozen(model):
        for count in range(steps):
            logits, _, grad = gradient(model, moved, partial(_odds, label=label, goals=goals))
            hit = fooled(logits, label, goals)
            closest.improve(moved, size, hit)
            stay = closest.leave(hit, count == 0)
            if stay is not None:
                clean, label, moved, delta, grad = clean[stay], label[stay], moved[stay], delta[stay], grad[stay]
                bound, farthest, hit = bound[stay], farthest[stay], hit[stay]
                goals = None if goals is None else goals[stay]
                if len(clean) == 0:
                    break
            length = 0.01 + 0.99 * (1 + math.cos(math.pi * count / steps)) / 2
            delta.addcmul_(grad, (length / ball.size(grad).clamp_min(1e-12)).view(wide))
            bound = torch.minimum(torch.where(hit, 1 - gamma, 1 + gamma) * bound, farthest)
            delta.mul_((bound / ball.size(delta).clamp_min(1e-12)).view(wide))
            torch.add(clean, delta, out=moved).clamp_(0, 1)
            torch.sub(moved, clean, out=delta)
            size = ball.size(delta)
    return closest.finish()


def _odds(logits: Tensor, label: Tensor, goals: Tensor | None) -> Tensor:
    aimed = label if goals is None else goals
    others = logits.scatter(1, aimed[:, None], -torch.inf).logsumexp(1)
    own = logits.gather(1, aimed[:, None]).squeeze(1)
    return others - own if goals is None else own - others
