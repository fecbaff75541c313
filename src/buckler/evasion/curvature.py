"""Probe: how sharply the loss bends.

Moosavi-Dezfooli, Fawzi, Uesato and Frossard, "Robustness via curvature regularization, and vice versa", CVPR 2019,
https://arxiv.org/abs/1811.09716. Part of the mechanism analysis that the survey of Li, Jiang, Wang, Shen and Li asks
for (Journal of Computer Research and Development 58(5), 2021).

`curvature` is the paper's measure: how much the gradient changes over a step along its own sign, per unit of length.
`largest_eigenvalue` is the eigenvalue of the Hessian that is largest in magnitude, with its sign, by power iteration.
Both take differences of gradients over a step of finite length, since a network of ReLUs bends only between its linear
pieces. The paper's step is 1.5 in l2 on 3,072 elements; here that is scaled with the square root of the number of
elements. The points stepped to may leave [0, 1], as in the paper.

Tags: nist-ai-100-2:NISTAML.022, owasp-ml:ML01, cwe:1039.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from buckler.dice import Dice
from buckler.evasion._search import Objective, ascend, gradient
from buckler.kinds import Readings
from buckler.target import frozen


def curvature(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    length: float | None = None,
    iterations: int = 10,
    objective: Objective = "ce",
    seed: int = 0,
) -> Readings:
    """The curvature of the loss along the sign of its gradient, and the largest over all directions, at every row.

    `x` `(B, ...)` in [0, 1], `y` `(B,)`; `length` is the l2 length of the differences, 1.5 on 3,072 elements if not
    given. Returns `curvature` `(B,)`, >= 0, and `largest_eigenvalue` `(B,)`, of either sign. Raises `ValueError` for a
    length that is not positive.
    """
    reach = 1.5 * (x[:1].numel() / 3072) ** 0.5 if length is None else length
    if not reach > 0 or iterations < 1:
        raise ValueError(f"expected length > 0 and iterations >= 1, got {length} and {iterations}")

    def slope(place: Tensor) -> Tensor:
        grad = gradient(model, place, lambda logits: ascend(objective, logits, y, None))[2]
        return grad.flatten(1)

    def shifted(direction: Tensor) -> Tensor:
        return x + reach * direction.view_as(x)

    with frozen(model):
        here = slope(x)
        along = (slope(shifted(_unit(here.sign()))) - here).norm(dim=1) / reach
        direction = _unit(Dice(x, seed).normal(*x.shape[1:]).to(x).flatten(1))
        largest = torch.zeros_like(along)
        for _ in range(iterations):
            bent = (slope(shifted(direction)) - slope(shifted(-direction))) / (2 * reach)
            largest = (direction * bent).sum(1)
            direction = torch.where(bent.norm(dim=1, keepdim=True) > 0, _unit(bent), direction)
    return {"curvature": along, "largest_eigenvalue": largest}


def _unit(flat: Tensor) -> Tensor:
    return flat / flat.norm(dim=1, keepdim=True).clamp_min(1e-30)
