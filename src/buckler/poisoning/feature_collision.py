"""Feature collision: correctly labelled images that lie where a chosen input lies, as the network sees them.

Shafahi, Huang, Najibi, Suciu, Studer, Dumitras and Goldstein, "Poison frogs! Targeted clean-label poisoning attacks on
neural networks", NeurIPS 2018, https://arxiv.org/abs/1804.00792.

Differs from the paper: the distance in features is taken relative to the distance at the start, so that `beta` means
the same for every network; each row's step is halved when its objective rises and grows again when it falls; `radius`
may bound the change in linf, as in later comparisons. It is meant for victims that keep the network's features and
train the last layer (give it as `net`, with `epochs` 0); on victims trained from scratch it rarely works.

Tags: atlas:AML.T0020, nist-ai-100-2:NISTAML.024, owasp-ml:ML02.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from buckler.data import Poisoned, Rows
from buckler.poisoning._look import BATCH, inputs_of, last_linear, where
from buckler.poisoning._nudge import shared_out, surrogate, wishes
from buckler.poisoning._touch import CHUNK, changed, chosen, classes, counted, images
from buckler.target import frozen
from buckler.threat import Ball, Share

FIRST = 0.05
"""How far the first step moves the pixel that it moves most."""


def feature_collision(
    data: Rows,
    *,
    share: Share,
    net: Callable[[], nn.Module],
    prey: Rows | None = None,
    steps: int = 200,
    beta: float = 0.25,
    watermark: float = 0.3,
    radius: float = 1.0,
    epochs: float = 5,
    rate: float = 0.05,
    seed: int = 0,
) -> Poisoned:
    """Move rows of the wanted class to where the prey lies in the features of a surrogate; their labels stay.

    `data` is `x` `(N, C, H, W)` and `y` `(N,)`; `prey` is inputs `(P, C, H, W)` and the labels `(P,)` wanted for them.
    `share` of all rows are divided among the prey; each takes its part at random out of the class wanted for it. A row
    starts at the clean one mixed with the prey by `watermark`, and takes `steps` of gradient descent on the squared
    distance in features, each followed by a pull of weight `beta` towards where it started. `radius` bounds all of the
    change, the watermark included, in linf. The surrogate is a network from `net` trained on `data` for `epochs`.
    Returns `Poisoned` with `prey`. Raises `ValueError` without prey, or for a share that the classes cannot supply.
    """
    x, y = images(data)
    hunted, wanted = wishes(prey, x, classes(y))
    if not (0 <= watermark < 1 and 0 < radius <= 1 and beta >= 0 and steps >= 0):
        raise ValueError(
            "expected a watermark of at least 0 and below 1, a radius above 0 and at most 1, beta and steps >= 0, got "
            f"{watermark}, {radius}, {beta} and {steps}"
        )
    parts = shared_out(counted(share, y), len(wanted))
    model = surrogate(net, (x, y), epochs=epochs, rate=rate, seed=seed)
    goal = torch.zeros(len(y), dtype=torch.long)
    rows = torch.zeros(len(y), dtype=torch.bool)
    for index, many in enumerate(parts):
        label = int(wanted[index])
        mine = chosen((y == label) & ~rows, many, seed + index, short=f"rows of class {label}, wanted for prey {index}")
        rows, goal[mine] = rows | mine, index
    goals = iter(goal[rows].split(CHUNK))
    ball = Ball("linf", radius)

    def collide(clean: Tensor) -> Tensor:
        target = hunted[next(goals)].to(clean)
        base = ball.clip(clean, clean + watermark * (target - clean))
        pairs = zip(clean.split(BATCH), base.split(BATCH), target.split(BATCH), strict=True)
        return torch.cat([_collided(model, *held, ball=ball, steps=steps, beta=beta) for held in pairs])

    return Poisoned(changed(x, rows, collide), y, rows, y, prey=(hunted, wanted))


def _collided(
    model: nn.Module, clean: Tensor, base: Tensor, target: Tensor, *, ball: Ball, steps: int, beta: float
) -> Tensor:
    """Forward-backward splitting: a step on the features' distance, then the proximal step towards `base`."""
    held = [tensor.to(where(model)) for tensor in (clean, base, target)]
    clean_, base_, target_ = held
    with frozen(model), inputs_of(last_linear(model)) as seen, torch.enable_grad():

        def features(images: Tensor) -> Tensor:
            seen.clear()
            model(images)
            return seen[-1].flatten(1)

        with torch.no_grad():
            aim = features(target_)
            scale = (features(base_) - aim).square().sum(1).clamp_min(1e-12)

        def objective(images: Tensor) -> tuple[Tensor, Tensor]:
            moving = images.detach().requires_grad_()
            apart = (features(moving) - aim).square().sum(1) / scale
            (gradient,) = torch.autograd.grad(apart.sum(), moving)
            return apart.detach() + beta * (images - base_).square().flatten(1).mean(1), gradient

        best = base_
        value, gradient = objective(best)
        step = FIRST / gradient.flatten(1).abs().amax(1).clamp_min(1e-12)
        for _ in range(steps):
            pull = beta * 2 / best[0].numel()
            wide = step.view(-1, 1, 1, 1)
            moved = ball.clip(clean_, (best - wide * gradient + wide * pull * base_) / (1 + wide * pull))
            new, slope = objective(moved)
            better = new < value
            keep = better.view(-1, 1, 1, 1)
            best, gradient = torch.where(keep, moved, best), torch.where(keep, slope, gradient)
            value, step = torch.where(better, new, value), torch.where(better, step * 1.2, step / 2)
    return best.to(clean)
