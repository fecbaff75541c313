"""Probe: how far the loss strays from its tangent plane inside the ball.

Qin, Martens, Gowal, Krishnan, Dvijotham, Fawzi, De, Stanforth and Kohli, "Adversarial robustness through local
linearization", NeurIPS 2019, https://arxiv.org/abs/1907.02610: the largest |l(x + d) - l(x) - d . grad l(x)| over the
ball, climbed by projected gradient ascent. Part of the mechanism analysis that the survey of Li, Jiang, Wang, Shen and
Li asks for (Journal of Computer Research and Development 58(5), 2021). Large values mean that gradients mislead, and
that attacks of few steps understate what a longer one would do.

Differs from the paper: steps of fixed length, 2.5 / steps radii, and the best point met is kept; the start is random,
as the gradient of the measure is zero at the input itself, and so is every step from where that gradient vanishes. The
result is a lower bound of the maximum.

Tags: nist-ai-100-2:NISTAML.022, owasp-ml:ML01, cwe:1039.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from buckler.dice import Dice
from buckler.evasion._inner import unit
from buckler.evasion._search import Objective, ascend, gradient
from buckler.kinds import Readings
from buckler.target import frozen
from buckler.threat import Ball


def local_linearity(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    ball: Ball,
    steps: int = 10,
    objective: Objective = "ce",
    seed: int = 0,
) -> Readings:
    """The largest error of the loss's tangent plane that is found in the ball around every row.

    `x` `(B, ...)` in [0, 1], `y` `(B,)`; `ball` linf or l2 (a `ValueError` otherwise). Returns `local_linearity`
    `(B,)`, >= 0, where 0 is a loss that is linear in the ball.
    """
    if ball.norm not in ("linf", "l2"):
        raise ValueError(f"expected a ball in linf or l2, got {ball.norm}")

    def loss(logits: Tensor) -> Tensor:
        return ascend(objective, logits, y, None)

    dice = Dice(x, seed)
    with frozen(model):
        _, base, slope = gradient(model, x, loss)
        moved = ball.clip(x, x + unit(dice.normal(*x.shape[1:]).to(x), ball) * ball.radii(x) / 2)
        most = torch.zeros_like(base)
        for count in range(steps + 1):
            _, value, grad = gradient(model, moved, loss)
            error = value - base - ((moved - x) * slope).flatten(1).sum(1)
            most = torch.maximum(most, error.abs())
            if count < steps:
                uphill = error.sign().view(-1, *[1] * (x.ndim - 1)) * (grad - slope)
                stuck = (uphill.flatten(1) == 0).all(1).view(-1, *[1] * (x.ndim - 1))
                uphill = torch.where(stuck, dice.normal(*x.shape[1:]).to(x), uphill)
                moved = ball.clip(x, moved + 2.5 / steps * ball.radii(x) * unit(uphill, ball))
    return {"local_linearity": most}
