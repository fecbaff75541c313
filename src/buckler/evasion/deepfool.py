"""DeepFool: step to the nearest class boundary of the linearised model until the label changes.

Moosavi-Dezfooli, Fawzi and Frossard, "DeepFool: a simple and accurate method to fool deep neural networks", CVPR 2016,
https://arxiv.org/abs/1511.04599.

Differs from the paper: iterates stay in [0, 1], which the paper leaves open. As in the authors' own code, the overshoot
is part of every iterate and every step is 1e-4 longer than to the boundary, so the point that is returned is one whose
label was seen to change. The boundaries are those of the classes that lead at the clean row. All rows walk at once, and
a row leaves the moment its label changes or its gradients vanish.

Tags: atlas:AML.T0043.000, atlas:AML.T0015, nist-ai-100-2:NISTAML.022, owasp-ml:ML01, cwe:1039.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from buckler.kinds import Perturbed
from buckler.target import frozen
from buckler.threat import Ball

BEYOND = 1e-4
"""What is added to the length of a step, so that it ends behind the boundary and not on it."""


def deepfool(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    ball: Ball,
    steps: int = 50,
    classes: int = 10,
    overshoot: float = 0.02,
) -> Perturbed:
    """Add up the shortest steps across the linearised boundaries until the label is no longer `y`.

    `x` `(B, ...)` in [0, 1], `y` `(B,)`; `ball` l2 or linf (a `ValueError` otherwise); its radius does not steer the
    search. `classes` counts the label and the classes that lead beside it. Returns `(B, ...)`: the first point with
    another label, which overshoots the boundary by the share `overshoot`, brought into the ball where it is outside;
    where the label never changed, the last point, brought into the ball.
    """
    if ball.norm not in ("l2", "linf"):
        raise ValueError(f"expected a ball in l2 or linf, got {ball.norm}: evasion/fmn attacks l1 and l0")
    if classes < 2 or overshoot < 0:
        raise ValueError(f"expected at least 2 classes and overshoot >= 0, got {classes} and {overshoot}")
    found = x.clone()
    rows, clean, label, moved = torch.arange(len(x), device=x.device), x, y, x
    total = torch.zeros_like(x)
    others = torch.empty(0, 0, dtype=torch.long, device=x.device)
    with frozen(model):
        for count in range(steps + 1 if len(x) > 0 else 0):
            point = moved.detach().requires_grad_(count < steps)
            with torch.set_grad_enabled(count < steps):
                logits = model(point)
            if count == 0:
                ranked = logits.detach().scatter(1, label[:, None], -torch.inf)
                others = ranked.topk(min(classes, logits.shape[1]) - 1, dim=1).indices
            found[rows] = moved
            stay = logits.argmax(1) == label
            if count == steps or not bool(stay.any()):
                break
            step = _shortest(logits, point, label, others, ball)
            stay &= step.flatten(1).ne(0).any(1)
            if not bool(stay.all()):
                rows, clean, label, total = rows[stay], clean[stay], label[stay], total[stay]
                others, step = others[stay], step[stay]
                if len(rows) == 0:
                    break
            total = total + step
            moved = (clean + (1 + overshoot) * total).clamp(0, 1)
    inside = ball.contains(x, found).view(-1, *[1] * (x.ndim - 1))
    return torch.where(inside, found, ball.clip(x, found))


def _shortest(logits: Tensor, point: Tensor, label: Tensor, others: Tensor, ball: Ball) -> Tensor:
    """The step `(R, ...)` to the nearest of the linearised boundaries between `label` and `others` `(R, C)`."""
    gaps = logits.gather(1, others) - logits.gather(1, label[:, None])
    last = gaps.shape[1] - 1
    nearest, chosen = torch.full_like(gaps[:, 0], torch.inf), torch.zeros_like(point)
    shortest = torch.zeros_like(nearest)
    for place in range(last + 1):
        gap = gaps[:, place]
        if not gap.requires_grad:
            break
        (slope,) = torch.autograd.grad(gap.sum(), point, retain_graph=place < last, materialize_grads=True)
        flat = slope.flatten(1)
        # the dual norm: a step of length r gains at most r times this
        dual = flat.norm(dim=1) if ball.norm == "l2" else flat.abs().sum(1)
        distance = torch.where(dual > 0, gap.detach().abs() / dual, torch.inf)
        closer = distance < nearest
        nearest = torch.where(closer, distance, nearest)
        shortest = torch.where(closer, dual, shortest)
        chosen = torch.where(closer.view(-1, *[1] * (point.ndim - 1)), slope, chosen)
    wide = (-1, *[1] * (point.ndim - 1))
    length = torch.where(nearest.isfinite(), nearest + BEYOND, 0).detach().view(wide)
    if ball.norm == "linf":
        return length * chosen.sign()
    return length * chosen / shortest.clamp_min(torch.finfo(point.dtype).tiny).view(wide)
