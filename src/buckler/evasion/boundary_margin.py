"""Probe: how far every row is from the nearest wrong label.

The first-order distance is that of Moosavi-Dezfooli, Fawzi and Frossard, "DeepFool", CVPR 2016,
https://arxiv.org/abs/1511.04599. The search is a short form of Croce and Hein, "Minimally distorted adversarial
examples with a fast adaptive boundary attack", ICML 2020, https://arxiv.org/abs/1907.02044: the point and the input are
both projected, inside the box, onto the tangent plane of the boundary and mixed; a point that is wrong is drawn a tenth
of the way back. Then the segment between the input and the nearest wrong point is halved. Differs from it: the plane is
that of the best other class, and there are no restarts. Part of the mechanism analysis that the survey of Li, Jiang,
Wang, Shen and Li asks for (Journal of Computer Research and Development 58(5), 2021).

`margin` is an upper bound of the true distance, for inputs in [0, 1]; `first_order_margin` ignores the box and is exact
for linear models. Where the two differ much, the model is not linear on the way or hides its gradients. Short on
purpose: for a verdict, run a minimum-norm attack.

Tags: nist-ai-100-2:NISTAML.022, owasp-ml:ML01, cwe:1039.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from buckler.evasion._boxed import to_hyperplane
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
    steps: int = 20,
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
                onward = _projected(x, moved, slope, value, norm)
                moved = torch.where(_wide(found, x), x + 0.9 * (moved - x), onward)
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


def _projected(x: Tensor, moved: Tensor, slope: Tensor, value: Tensor, norm: Reach) -> Tensor:
    """A point a little beyond the tangent plane at `moved`, near it and drawn towards the one nearest to `x`."""
    clean, place, tilt = x.flatten(1), moved.flatten(1), slope.flatten(1)
    short = value - 0.02 * value.abs() - 1e-6 * dual(slope, norm)
    near = place + to_hyperplane(norm, place, tilt, short)
    far = clean + to_hyperplane(norm, clean, tilt, short - ((place - clean) * tilt).sum(1))
    step, way = _size(near - place, norm), _size(far - clean, norm)
    share = (step / (step + way).clamp_min(1e-30)).clamp_max(0.1)
    return (near + share[:, None] * (far - near)).clamp(0, 1).view_as(x)


def _size(delta: Tensor, norm: Reach) -> Tensor:
    flat = delta.flatten(1)
    return flat.abs().amax(1) if norm == "linf" else flat.norm(dim=1, p=2 if norm == "l2" else 1)


def _wide(values: Tensor, x: Tensor) -> Tensor:
    return values.view(-1, *[1] * (x.ndim - 1))
