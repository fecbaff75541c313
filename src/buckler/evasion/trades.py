"""TRADES: accuracy traded for agreement between an input and its neighbourhood.

Zhang, Yu, Jiao, Xing, El Ghaoui and Jordan, "Theoretically principled trade-off between robustness and accuracy", ICML
2019, https://arxiv.org/abs/1901.08573.

As in the reference implementation: the inner search runs in evaluation mode (batch norm by its running statistics,
which it leaves alone; no dropout) and starts from the input plus Gaussian noise of 0.001; then the input and its
neighbour pass through the model one after the other in the mode the model came in, so both batches enter the running
statistics; the gradient flows through both. Differs: the step is in radii, 2.5 / steps by default (0.25 at 10 steps;
the reference's 0.007 at radius 0.031 is 0.23); in l2 the step is the normalised gradient, where the reference runs an
optimiser on the perturbation. The noise is drawn from the global generator, afresh at every call.

No guarantee.

Tags: atlas:AML.M0003, nist-ai-100-2:NISTAML.022, owasp-ml:ML01, cwe:1039.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from buckler.evasion._inner import climb, trainable
from buckler.kinds import Losses
from buckler.target import frozen
from buckler.threat import Ball


def trades(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    ball: Ball,
    beta: float = 6.0,
    steps: int = 10,
    step: float | None = None,
    noise: float = 0.001,
) -> Losses:
    """Cross-entropy at every row plus `beta` times the divergence of its prediction from the farthest one around it.

    `x` `(B, ...)` in [0, 1], `y` `(B,)`; `ball` linf or l2 with a finite radius (a `ValueError` otherwise). `step` is
    in radii; `noise` is the standard deviation of the start. Returns `(B,)`, differentiable in the parameters.
    """
    length = 2.5 / max(steps, 1) if step is None else step
    with torch.no_grad(), frozen(model):
        settled = model(x)
    moved = trainable(ball).clip(x, x + noise * torch.randn_like(x))
    moved = climb(model, x, moved, lambda logits: _divergence(settled, logits), ball=ball, steps=steps, step=length)
    natural = model(x)
    return F.cross_entropy(natural, y, reduction="none") + beta * _divergence(natural, model(moved))


def _divergence(clean: Tensor, moved: Tensor) -> Tensor:
    """Kullback-Leibler divergence of the softmax of `moved` from that of `clean`, logits `(B, K)`: `(B,)`."""
    return F.kl_div(moved.log_softmax(1), clean.log_softmax(1), reduction="none", log_target=True).sum(1)
