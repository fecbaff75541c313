"""Probe: how strongly the loss reacts to the input, to first order.

Simon-Gabriel, Ollivier, Bottou, Schoelkopf and Lopez-Paz, "First-order adversarial vulnerability of neural networks and
input dimension", ICML 2019, https://arxiv.org/abs/1802.01421. Part of the mechanism analysis that the survey of Li,
Jiang, Wang, Shen and Li asks for (Journal of Computer Research and Development 58(5), 2021).

To first order, an adversary with radius r in a norm raises the loss by r times the dual norm of its gradient: l1 for
linf, l2 for l2, the largest element for l1. A very small number on a model that is easily fooled is a saturated loss,
not robustness; `objective="margin"` does not saturate.

Tags: nist-ai-100-2:NISTAML.022, owasp-ml:ML01, cwe:1039.
"""

from __future__ import annotations

from torch import Tensor, nn

from buckler.evasion._probe import Reach, dual
from buckler.evasion._search import Objective, ascend, gradient
from buckler.kinds import Readings
from buckler.target import frozen


def gradient_norm(
    model: nn.Module, x: Tensor, y: Tensor, *, norm: Reach = "linf", objective: Objective = "ce"
) -> Readings:
    """The norm, dual to the adversary's `norm`, of the objective's gradient at every row.

    `x` `(B, ...)` in [0, 1], `y` `(B,)`. Returns `gradient_norm` `(B,)`. Raises `ValueError` for l0.
    """
    with frozen(model):
        grad = gradient(model, x, lambda logits: ascend(objective, logits, y, None))[2]
    return {"gradient_norm": dual(grad, norm)}
