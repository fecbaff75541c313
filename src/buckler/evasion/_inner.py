"""What the losses for adversarial training share: where the inner search starts, how it steps, and one climb.

Draws come from the global generator: training wants a fresh draw at every call, and `train.fit` seeds and forks that
generator, so that a training run is reproducible as a whole.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from buckler.evasion._search import gradient
from buckler.target import frozen
from buckler.threat import Ball


def trainable(ball: Ball) -> Ball:
    """The same ball, if adversarial training can use it: linf or l2, with a finite radius; else a `ValueError`."""
    radius = ball.radius
    finite = bool(radius.isfinite().all()) if isinstance(radius, Tensor) else math.isfinite(radius)
    if ball.norm not in ("linf", "l2") or not finite:
        raise ValueError(f"expected a ball in linf or l2 with a finite radius, got {ball}: choose one to train against")
    return ball


def start(x: Tensor, ball: Ball) -> Tensor:
    """A point drawn uniformly from the ball around every row of `x` `(B, ...)`, then clipped to [0, 1]."""
    if ball.norm == "linf":
        return ball.clip(x, x + (2 * torch.rand_like(x) - 1) * ball.radii(x))
    delta = torch.randn_like(x)
    length = torch.rand_like(ball.radii(x)) ** (1 / x[0].numel())
    return ball.clip(x, x + unit(delta, ball) * length * ball.radii(x))


def unit(grad: Tensor, ball: Ball) -> Tensor:
    """The direction of length 1 in the ball's norm along which a row gains most."""
    if ball.norm == "linf":
        return grad.sign()
    return grad / grad.flatten(1).norm(dim=1).clamp_min(1e-12).view(-1, *[1] * (grad.ndim - 1))


def climb(
    model: nn.Module,
    x: Tensor,
    moved: Tensor,
    objective: Callable[[Tensor], Tensor],
    *,
    ball: Ball,
    steps: int,
    step: float,
) -> Tensor:
    """Climb `objective` of the logits from `moved`, `steps` times by `step` radii, and return the last point.

    The model is in evaluation mode meanwhile (batch norm by its running statistics, which stay as they are; no
    dropout), its parameters collect nothing, and every module's mode is restored.
    """
    with frozen(model):
        for _ in range(steps):
            grad = gradient(model, moved, objective)[2]
            moved = ball.clip(x, moved + step * ball.radii(x) * unit(grad, ball))
    return moved


@contextmanager
def buffers_kept(model: nn.Module) -> Generator[None, None, None]:
    """Whatever forward passes in the block write into the model's buffers (running statistics) is undone after it."""
    kept = [(buffer, buffer.clone()) for buffer in model.buffers()]
    try:
        yield
    finally:
        with torch.no_grad():
            for buffer, value in kept:
                buffer.copy_(value)
