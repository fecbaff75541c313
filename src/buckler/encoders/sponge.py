"""Sponge inputs: what an encoder has the most work with.

Shumailov, Zhao, Bates, Papernot, Mullins and Anderson, "Sponge examples: energy-latency attacks on neural networks",
EuroS&P 2021, https://arxiv.org/abs/2006.03463.

Differs from the paper: gradient steps on how many units are on, through a sigmoid, instead of on norms of activations,
as a unit that is off has no gradient; for an encoder that may stop early, on how far its exits disagree; for a vision
transformer that drops tokens, on the attention that the dropped ones lack (after Navaneet, Koohpayegani, Sleiman and
Pirsiavash, "SlowFormer", CVPR 2024, https://arxiv.org/abs/2310.02544, who use a patch). Of all steps the costliest
input counts. What is counted is multiplications, not seconds or joules.

Tags: atlas:AML.T0029, atlas:AML.T0034.001, nist-ai-100-2:NISTAML.014.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from buckler.encoders._adaptive import Adaptive
from buckler.encoders._early_exit import busy
from buckler.kinds import Perturbed
from buckler.target import frozen
from buckler.threat import Ball


def sponge(model: nn.Module, x: Tensor, *, ball: Ball, steps: int = 40, seed: int = 0) -> Perturbed:
    """Inputs `(B, C, H, W)` in `ball` around `x`, in [0, 1], that cost `model` as much as they can be made to.

    `model` is an encoder, whose cost is the share of multiplications that is not by zero, or one that does more work
    for some inputs than for others (`Adaptive`: early exits, token pruning), whose cost is that work. Starts at random
    in the ball and takes `steps` signed steps of decreasing size. A `ValueError` for no steps.
    """
    if steps < 1:
        raise ValueError(f"expected at least one step, got {steps}")
    draw = torch.Generator(x.device).manual_seed(seed)
    reach = ball.radii(x).clamp_max(1.0) if ball.norm == "linf" else torch.ones_like(ball.radii(x))
    now = ball.clip(x, x + reach * (2 * torch.rand(x.shape, generator=draw, device=x.device) - 1))
    best, most = now, _cost(model, now)
    with frozen(model):
        for step in range(steps):
            moved = now.detach().requires_grad_()
            (slope,) = torch.autograd.grad(_pressure(model, moved).sum(), moved)
            now = ball.clip(x, now + 0.5 * reach * (1 - step / steps) * slope.sign())
            cost = _cost(model, now)
            better = cost > most
            best, most = torch.where(better[:, None, None, None], now, best), torch.where(better, cost, most)
    return best


def _cost(model: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad(), frozen(model):
        return model.spent(x) if isinstance(model, Adaptive) else busy(model, x)


def _pressure(model: nn.Module, x: Tensor) -> Tensor:
    """What grows with the cost, and has a slope: `(B,)`."""
    if isinstance(model, Adaptive):
        return model.pressure(x)
    norms = [part for part in model.modules() if isinstance(part, nn.BatchNorm2d | nn.BatchNorm1d | nn.GroupNorm)]
    layers = norms or [part for part in model.modules() if isinstance(part, nn.Conv2d | nn.Linear)]
    on = list[Tensor]()
    handles = [
        layer.register_forward_hook(
            lambda _layer, _inputs, out: on.append((10 * out).sigmoid().reshape(len(x), -1).mean(1))
        )
        for layer in layers
    ]
    try:
        model(x)
    finally:
        for handle in handles:
            handle.remove()
    return torch.stack(on).sum(0)
