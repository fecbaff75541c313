"""Probe: how far every row is from the nearest wrong label.

The first-order distance is that of Moosavi-Dezfooli, Fawzi and Frossard, "DeepFool", CVPR 2016,
https://arxiv.org/abs/1511.04599. The search projects the input, inside the box, onto the boundary's tangent plane at
the last point, again and again (the projection is the one of Croce and Hein, "Minimally distorted adversarial
examples with a fast adaptive boundary attack", ICML 2020, https://arxiv.org/abs/1907.02044), and then halves the
segment between the input and the nearest wrong point. Part of the mechanism analysis that the survey of Li, Jiang,
Wang, Shen and Li asks for (Journal of Computer Research and Development 58(5), 2021).

`margin` is an upper bound of the true distance, for inputs in [0, 1]; `first_order_margin` ignores the box and is exact
for linear models. Where the two differ much, the model is not linear on the way or hides its gradients. Short on
purpose: for a verdict, run a minimum-norm attack.

Tags: nist-ai-100-2:NISTAML.022, owasp-ml:ML01, cwe:1039.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from buckler.evasion._probe import Reach, dual
from buckler.evasion._search import ascend, gradient
from buckler.kinds import Readings
from buckler.target import frozen


def boundary_margin(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    norm: Reach = "linf",
    steps: int = 10,
    halvings: int = 10,
    rivals: int = 9,
) -> Readings:
    """The distance in `norm` from every row to the nearest wrong label: to first order, and by a short search.

    `x` `(B, ...)` in [0, 1], `y` `(B,)`. Only the `rivals` classes with the highest scores are considered to first
    order. Returns `first_order_margin` and `margin`, each `(B,)`: 0 for a row that is wrong already, infinite for a
    `margin` where the search met no wrong label. Raises `ValueError` for l0.
    """
    with frozen(model):
        first, target = _first_order(model, x, y, norm, rivals)
        nearest = torch.full_like(first, torch.inf)
        best, moved = x.clone(), x
        for count in range(steps + 1):
            goal = target if count == 0 else None
            logits, value, slope = gradient(model, moved, lambda out, goal=goal: ascend("margin", out, y, goal))
            found = logits.argmax(1) != y
            size = _size(moved - x, norm)
            closer = found & (size < nearest)
            nearest, best = torch.where(closer, size, nearest), torch.where(_wide(closer, x), moved, best)
            if count < steps:
                need = ((moved - x) * slope).flatten(1).sum(1) - value
                goal_line = need + 0.02 * need.abs() + 1e-6 * dual(slope, norm)
                moved = _onto(x, slope, goal_line, norm)
        near, far = torch.zeros_like(nearest), torch.ones_like(nearest)
        with torch.no_grad():
            for _ in range(halvings):
                middle = (near + far) / 2
                wrong = model(x + _wide(middle, x) * (best - x)).argmax(1) != y
                near, far = torch.where(wrong, near, middle), torch.where(wrong, middle, far)
    return {"first_order_margin": first, "margin": torch.where(nearest > 0, nearest * far, 0)}


def _first_order(model: nn.Module, x: Tensor, y: Tensor, norm: Reach, rivals: int) -> tuple[Tensor, Tensor]:
    """The smallest distance to a tangent plane and the class beyond it, each `(B,)`."""
    with torch.no_grad():
        logits = model(x)
    others = logits.scatter(1, y[:, None], -torch.inf).topk(min(rivals, logits.shape[1] - 1), dim=1).indices
    first, target = x.new_full((len(x),), torch.inf), others[:, 0]
    for rival in others.unbind(1):
        _, value, slope = gradient(model, x, lambda out, rival=rival: ascend("margin", out, y, rival))
        distance = (-value).clamp_min(0) / dual(slope, norm).clamp_min(1e-30)
        target = torch.where(distance < first, rival, target)
        first = torch.minimum(first, distance)
    return first, target


def _onto(x: Tensor, slope: Tensor, need: Tensor, norm: Reach) -> Tensor:
    """The point of [0, 1] nearest to `x` with slope . (point - x) >= need, or as far that way as the box goes."""
    clean, g = x.flatten(1), slope.flatten(1)
    if norm == "l1":
        room = torch.where(g > 0, 1 - clean, clean)
        order = (g.abs() * (room > 0)).argsort(1, descending=True)
        gain = (g.abs() * room).gather(1, order)
        left = need.clamp_min(0)[:, None] - (gain.cumsum(1) - gain)
        used = (left / gain.clamp_min(1e-30)).clamp(0, 1) * room.gather(1, order)
        return (clean + torch.zeros_like(clean).scatter(1, order, used) * g.sign()).clamp(0, 1).view_as(x)
    pull = g.sign() if norm == "linf" else g / g.norm(dim=1, keepdim=True).clamp_min(1e-30)
    # beyond `high` every element with a pull has met the box
    high = (1 / pull.abs().where(pull != 0, torch.inf).amin(1)).clamp(1, 1e4)
    low = torch.zeros_like(high)
    for _ in range(40):
        middle = (low + high) / 2
        gained = (((clean + middle[:, None] * pull).clamp(0, 1) - clean) * g).sum(1)
        low, high = torch.where(gained < need, middle, low), torch.where(gained < need, high, middle)
    return (clean + high[:, None] * pull).clamp(0, 1).view_as(x)


def _size(delta: Tensor, norm: Reach) -> Tensor:
    flat = delta.flatten(1)
    return flat.abs().amax(1) if norm == "linf" else flat.norm(dim=1, p=2 if norm == "l2" else 1)


def _wide(values: Tensor, x: Tensor) -> Tensor:
    return values.view(-1, *[1] * (x.ndim - 1))
