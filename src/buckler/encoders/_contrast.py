"""What contrastive pre-training shares: views of an image, a head above the encoder, and the loss between views."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from buckler.augment import Augment, chained, cropped, flip, jittered
from buckler.data import Rows
from buckler.nets import where
from buckler.train import started


def views(least: float) -> Augment:
    """How an image is changed to be looked at anew: a crop of at least the share `least`, mirrored or not, and other
    light and contrast."""
    return chained(cropped(least), flip, jittered(0.4, 0.4))


class Headed(nn.Module):
    """An encoder and what stands above it only while it learns: two linear layers, `out` numbers in the end."""

    def __init__(self, encoder: nn.Module, features: int, out: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = nn.Sequential(nn.Linear(features, features), nn.ReLU(), nn.Linear(features, out))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.encoder(x))


def headed(net: Callable[[], nn.Module], data: Rows, out: int, seed: int) -> Headed:
    """An untrained encoder with a head of `out` numbers, both drawn by `seed`. Raises as `begun` does."""
    body, wide = begun(net, data, seed)
    return cast(Headed, started(lambda: Headed(body, wide, out), seed).to(where(body)))


def begun(net: Callable[[], nn.Module], data: Rows, seed: int) -> tuple[nn.Module, int]:
    """An untrained encoder, drawn by `seed`, and how many features it gives. A `ValueError` unless it turns images
    `(B, C, H, W)` into a matrix `(B, D)`."""
    if data[0].ndim != 4 or len(data[0]) < 2:
        raise ValueError(f"expected two images or more, (N, C, H, W), got {tuple(data[0].shape)}")
    body = started(net, seed)
    with torch.no_grad():
        features = body.eval()(data[0][:2].float().to(where(body)))
    if features.ndim != 2:
        raise ValueError(f"expected an encoder that gives a matrix (B, D), got {tuple(features.shape)}: flatten it")
    return body, features.shape[1]


def contrast(z: Tensor, temperature: float) -> Tensor:
    """NT-Xent: of the 2B rows of `z` `(2B, D)` row i and row i + B are views of one image; each is to be told from all
    others by its cosine to the other view. `(B,)`, the mean of both directions."""
    z = F.normalize(z, dim=1)
    half = len(z) // 2
    alike = (z @ z.T / temperature).fill_diagonal_(-torch.inf)
    other = torch.arange(2 * half, device=z.device).roll(half)
    return F.cross_entropy(alike, other, reduction="none").view(2, half).mean(0)
