"""What the poisoning attacks with a surrogate share: how it is trained, and steps on pixels by its gradients."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from buckler.data import Rows
from buckler.poisoning._look import BATCH, outputs, where
from buckler.target import frozen
from buckler.threat import Ball
from buckler.touch import shared_out as shared_out
from buckler.touch import wishes as wishes
from buckler.train import LossPerRow, cross_entropy, fit, started

HARDENING = 5
"""Steps of the inner attack of adversarial training."""


def surrogate(
    net: Callable[[], nn.Module], data: Rows, *, epochs: float, rate: float, seed: int, hardened: float = 0.0
) -> nn.Module:
    """A network of the adversary's own, trained on the clean `data`; adversarially in linf `hardened` if above 0.

    With no epochs it is what `net` returns: a network that the adversary has already trained.
    """
    model = started(net, seed)
    outputs(model, data)
    if epochs == 0:
        return copy.deepcopy(model).eval()
    loss = cross_entropy if hardened == 0 else _hardened(hardened)
    return fit(model, data, loss=loss, epochs=epochs, rate=rate, seed=seed)


def pushed_away(model: nn.Module, x: Tensor, y: Tensor, *, radius: float, steps: int, start: Tensor) -> Tensor:
    """Inputs `(B, ...)` in [0, 1] within linf `radius` of `x` at which the cross-entropy of `y` `(B,)` is high (PGD).

    `start` `(B, ...)` in [-1, 1] says where in the ball to begin. The steps are 2.5 `radius` / `steps` long. The answer
    is where `x` was; `model` is not changed.
    """
    ball, step, device = Ball("linf", radius), 2.5 * radius / max(1, steps), where(model)
    out: list[Tensor] = []
    with frozen(model):
        for part in torch.arange(len(x)).split(BATCH):
            held, labels = x[part].to(device), y[part].to(device)
            moved = ball.clip(held, held + radius * start[part].to(held))
            for _ in range(steps):
                moved = ball.clip(held, moved + step * uphill(model, moved, labels)[0].sign())
            out.append(moved.to(x))
    return torch.cat(out)


def uphill(model: nn.Module, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """The gradient of every row's cross-entropy in its input, `(B, ...)`, and the logits `(B, K)`.

    The model must answer every row by itself, as it does while evaluating.
    """
    with torch.enable_grad():
        moved = x.detach().requires_grad_()
        logits = model(moved)
        (gradient,) = torch.autograd.grad(F.cross_entropy(logits, y, reduction="sum"), moved)
    return gradient, logits.detach()


def _hardened(radius: float) -> LossPerRow:
    """Adversarial training (Madry et al., ICLR 2018): the cross-entropy at the end of a short attack."""

    def loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        moved = pushed_away(model, x, y, radius=radius, steps=HARDENING, start=torch.rand_like(x) * 2 - 1)
        return cross_entropy(model, moved, y)

    return loss
