"""Gradient matching: rows whose training pulls a model where a false label of the prey would pull it.

Geiping, Fowl, Huang, Czaja, Taylor, Moeller and Goldstein, "Witches' brew: industrial scale data poisoning via gradient
matching", ICLR 2021, https://arxiv.org/abs/2009.02276.

Differs from the paper: steps are counted in [0, 1] and not in standard deviations of the data; prey for which
different labels are wanted are matched label by label, each by rows of that label; one surrogate, not an ensemble.

Tags: atlas:AML.T0020, nist-ai-100-2:NISTAML.024, owasp-ml:ML02.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from buckler.augment import Augment
from buckler.data import Poisoned, Rows
from buckler.poisoning._look import BATCH, where
from buckler.poisoning._nudge import shared_out, surrogate, wishes
from buckler.poisoning._touch import changed, chosen, classes, counted, images
from buckler.threat import Ball, Share

FALLS = (1 / 2.667, 1 / 1.6, 1 / 1.142)
"""At which shares of the steps they become ten times shorter, as in the authors' code."""


def gradient_matching(
    data: Rows,
    *,
    share: Share,
    net: Callable[[], nn.Module],
    prey: Rows | None = None,
    radius: float = 16 / 255,
    steps: int = 250,
    restarts: int = 8,
    step: float = 0.02,
    augment: Augment | None = None,
    epochs: float = 10,
    rate: float = 0.05,
    seed: int = 0,
) -> Poisoned:
    """Change rows of the wanted class so that a model trained on them misclassifies the prey; their labels stay.

    `data` is `x` `(N, C, H, W)` and `y` `(N,)`; `prey` is inputs `(P, C, H, W)` and the labels `(P,)` wanted for them.
    `share` of all rows, drawn from the classes wanted, are changed within linf `radius` by `steps` of signed Adam, each
    `step` long at first, that raise the cosine between the gradient of their loss and that of the prey's with the
    wanted label, in the parameters of a network from `net` trained on `data` for `epochs` (0: as `net` gives it). The
    best of `restarts` is kept. `augment` is applied to the rows at every step, for victims that augment. Returns
    `Poisoned` with `prey`. Raises `ValueError` without prey, or for a share that the classes cannot supply.
    """
    x, y = images(data)
    hunted, wanted = wishes(prey, x, classes(y))
    if not 0 < radius <= 1 or steps < 0 or restarts < 1 or step <= 0:
        raise ValueError(
            "expected a radius above 0 and at most 1, steps >= 0, restarts >= 1 and a step above 0, got "
            f"{radius}, {steps}, {restarts} and {step}"
        )
    labels, ball = wanted.unique(), Ball("linf", radius)
    parts = shared_out(counted(share, y), len(labels))
    model = surrogate(net, (x, y), epochs=epochs, rate=rate, seed=seed)
    rows, out = torch.zeros(len(y), dtype=torch.bool), x

    def brew(clean: Tensor, miss: Callable[[Tensor], Tensor]) -> Tensor:
        return _brewed(clean.to(where(model)), miss, ball, steps, restarts, step).to(clean)

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        for label, many in zip(labels, parts, strict=True):
            mine = chosen(y == label, many, seed, short=f"rows of class {int(label)}, which is wanted for prey")
            miss = _mismatch(model, int(label), hunted[wanted == label], augment)
            out = changed(out, mine, lambda clean, miss=miss: brew(clean, miss))
            rows |= mine
    return Poisoned(out, y, rows, y, prey=(hunted, wanted))


def _mismatch(model: nn.Module, label: int, prey: Tensor, augment: Augment | None) -> Callable[[Tensor], Tensor]:
    """One minus the cosine between two gradients in the parameters: of the loss of inputs and of that of the prey."""
    learnt = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not learnt:
        raise ValueError("expected a network with parameters that are trained, got none that requires a gradient")

    def gradient(x: Tensor, graph: bool) -> list[Tensor]:
        y = torch.full((len(x),), label, device=x.device)
        grads = torch.autograd.grad(F.cross_entropy(model(x), y), learnt, create_graph=graph, materialize_grads=True)
        return [part if graph else part.detach() for part in grads]

    with torch.enable_grad():
        aim = gradient(prey.to(where(model)), False)
    size = sum((part.square().sum() for part in aim), start=torch.zeros((), device=where(model))).sqrt()

    def miss(x: Tensor) -> Tensor:
        pull = gradient(x if augment is None else augment(x), True)
        along = torch.stack([(one * other).sum() for one, other in zip(aim, pull, strict=True)]).sum()
        strength = torch.stack([part.square().sum() for part in pull]).sum().clamp_min(1e-24).sqrt()
        return 1 - along / (size * strength).clamp_min(1e-12)

    return miss


def _brewed(
    clean: Tensor, miss: Callable[[Tensor], Tensor], ball: Ball, steps: int, restarts: int, step: float
) -> Tensor:
    """The rows with the lowest mismatch that was reached, each few hundred matched by themselves."""
    out: list[Tensor] = []
    for held in clean.split(BATCH):
        tries = [_once(held, miss, ball, steps, step) for _ in range(restarts)]
        out.append(min(tries, key=lambda pair: pair[1])[0])
    return torch.cat(out)


def _once(clean: Tensor, miss: Callable[[Tensor], Tensor], ball: Ball, steps: int, step: float) -> tuple[Tensor, float]:
    """Signed Adam from a random start: the rows and their mismatch."""
    delta = ball.project(torch.randn(clean.shape).to(clean) * ball.radius)
    mean, square = torch.zeros_like(delta), torch.zeros_like(delta)
    for turn in range(1, steps + 1):
        moving = ball.clip(clean, clean + delta).requires_grad_()
        with torch.enable_grad():
            (gradient,) = torch.autograd.grad(miss(moving), moving)
        sign = gradient.sign()
        mean, square = 0.9 * mean + 0.1 * sign, 0.999 * square + 0.001 * sign.square()
        length = step * 0.1 ** sum(turn > fall * steps for fall in FALLS)
        move = mean / (1 - 0.9**turn) / ((square / (1 - 0.999**turn)).sqrt() + 1e-8)
        delta = ball.clip(clean, moving.detach() - length * move) - clean
    moved = ball.clip(clean, clean + delta)
    with torch.enable_grad():
        return moved, float(miss(moved).detach())
