"""A sound model and a sound attack, and the ways in which either is broken on purpose."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F

from buckler.evasion.pgd import pgd
from buckler.kinds import Perturbed
from buckler.nets import SmallCNN
from buckler.target import LabelOracle
from buckler.threat import Ball


@cache
def digits() -> tuple[Tensor, Tensor]:
    bunch = load_digits()
    images = torch.tensor(bunch.images / 16, dtype=torch.float32)[:, None]
    return images, torch.tensor(bunch.target)


def held_out(rows: int = 64) -> tuple[Tensor, Tensor]:
    images, labels = digits()
    return images[1400 : 1400 + rows], labels[1400 : 1400 + rows]


def trained(model: nn.Module, *, epochs: int = 4, rate: float = 1e-2) -> nn.Module:
    """`model` after a second of training on the first 1,400 digits, in evaluation mode."""
    images, labels = digits()
    optimizer = torch.optim.Adam(model.parameters(), rate)
    order = torch.Generator().manual_seed(0)
    for _ in range(epochs):
        for index in torch.randperm(1400, generator=order).split(100):
            optimizer.zero_grad()
            F.cross_entropy(model(images[index]), labels[index]).backward()
            optimizer.step()
    optimizer.zero_grad()
    return model.eval()


@cache
def sound() -> nn.Module:
    torch.manual_seed(0)
    return trained(SmallCNN(width=8))


class Broken(nn.Module):
    """A model that answers through `how`."""

    def __init__(self, model: nn.Module, how: Callable[[nn.Module, Tensor], Tensor]) -> None:
        super().__init__()
        self.model, self.how = model, how
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        return self.how(self.model, x)


def stochastic(model: nn.Module, x: Tensor) -> Tensor:
    return model(x + 0.1 * torch.randn_like(x))


def dropout_left_on(model: nn.Module, x: Tensor) -> Tensor:
    return model(F.dropout(x, 0.3, training=True))


def softmax(model: nn.Module, x: Tensor) -> Tensor:
    return model(x).softmax(1)


def saturated(model: nn.Module, x: Tensor) -> Tensor:
    return model(x) * 1000


def signed(model: nn.Module, x: Tensor) -> Tensor:
    return model((x - 0.5).sign() / 2 + 0.5)


def rounded(model: nn.Module, x: Tensor) -> Tensor:
    return model((x * 8).round() / 8)


def detached(model: nn.Module, x: Tensor) -> Tensor:
    return model(x.detach())


def rounded_straight_through(model: nn.Module, x: Tensor) -> Tensor:
    return model(x + ((x * 8).round() / 8 - x).detach())


def wants_bytes(model: nn.Module, x: Tensor) -> Tensor:
    return model(x / 255)


def wants_signed_units(model: nn.Module, x: Tensor) -> Tensor:
    return model((x + 1) / 2)


def by_batch(model: nn.Module, x: Tensor) -> Tensor:
    return model(x - x.mean(0, keepdim=True) + 0.3)


def optimises(model: nn.Module, x: Tensor) -> Tensor:
    with torch.enable_grad():
        moved = x.detach().clone().requires_grad_()
        (grad,) = torch.autograd.grad(model(moved).logsumexp(1).sum(), moved)
    return model(x - 0.01 * grad.sign())


class Remembers(nn.Module):
    """Changes a buffer whenever it answers, in evaluation mode too."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.register_buffer("seen", torch.zeros(()))
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        self.seen.add_(1)
        return self.model(x)


def returns_input(model: nn.Module, x: Tensor, y: Tensor, *, ball: Ball) -> Perturbed:
    return x


def out_of_range(model: nn.Module, x: Tensor, y: Tensor, *, ball: Ball) -> Perturbed:
    return 255 * pgd(model, x, y, ball=ball)


def too_far(model: nn.Module, x: Tensor, y: Tensor, *, ball: Ball) -> Perturbed:
    moved = pgd(model, x, y, ball=ball)
    return (x + 2 * (moved - x)).clamp(0, 1)


def not_finite(model: nn.Module, x: Tensor, y: Tensor, *, ball: Ball) -> Perturbed:
    return x / 0


def forgets_success(model: nn.Module, x: Tensor, y: Tensor, *, ball: Ball) -> Perturbed:
    """Walks as PGD does, and returns its last iterate, which an overlong last step spoils."""
    moved = pgd(model, x, y, ball=ball)
    return (x - 0.5 * (moved - x)).clamp(0, 1)


def ends_before_it_starts(model: nn.Module, x: Tensor, y: Tensor, *, ball: Ball) -> Perturbed:
    return pgd(model, x, y, ball=ball, steps=1, step=0.02)


def too_few_steps(model: nn.Module, x: Tensor, y: Tensor, *, ball: Ball) -> Perturbed:
    return pgd(model, x, y, ball=ball, steps=8, step=0.02)


def gives_up(oracle: LabelOracle, x: Tensor, y: Tensor, *, ball: Ball, queries: int = 10) -> Perturbed:
    oracle(x)
    return x
