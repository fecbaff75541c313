"""The classifier that is smoothed: a probe that learnt what an encoder makes of noisy inputs."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from buckler.data import Rows, floats
from buckler.embedding import Probed, probed


def noisy_probe(encoder: nn.Module, data: Rows, *, classes: int, sigma: float, copies: int, seed: int) -> Probed:
    """The classifier that a linear probe makes of `encoder`, learnt from `copies` of the rows of `data`, each with
    Gaussian noise of `sigma` of its own."""
    x, y = floats(data[0]).cpu(), data[1].cpu()
    x, y = x.repeat(copies, *[1] * (x.ndim - 1)), y.repeat(copies)
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(seed))
    return probed(encoder, (x + sigma * noise, y), classes=classes, seed=seed)


class Noisy(nn.Module):
    """A classifier that adds noise to what it is asked: what an attack averages gradients over."""

    def __init__(self, model: nn.Module, sigma: float) -> None:
        super().__init__()
        self.model, self.sigma = model, sigma

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x + self.sigma * torch.randn_like(x))
