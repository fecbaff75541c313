"""Bars in one of four directions, in any place and light: what contrastive views leave as it is, is the direction."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from buckler.data import Rows
from buckler.embedding import embedded

SHAPES = 4


def world(rows: int, seed: int = 0) -> Rows:
    """`rows` images `(N, 1, 8, 8)` in [0, 1], and which of the shapes each shows."""
    draw = torch.Generator().manual_seed(seed)
    y = torch.randint(SHAPES, (rows,), generator=draw)
    down, across = torch.meshgrid(torch.arange(8), torch.arange(8), indexing="ij")
    planes = torch.stack([down, across, (down + across), (down - across)])[y] + torch.randint(
        4, (rows, 1, 1), generator=draw
    )
    light = 0.4 + 0.6 * torch.rand(rows, 1, 1, generator=draw)
    return ((planes % 4 < 2) * light)[:, None], y


def net() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 32, 3, 2, 1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 32),
    )  # fmt: skip


def apart(encoder: nn.Module) -> float:
    """How far the shapes' means lie apart, as a multiple of how far rows of one shape do (Fisher's ratio)."""
    x, y = world(400, seed=1)
    f = embedded(encoder, x)
    means = torch.stack([f[y == shape].mean(0) for shape in range(SHAPES)])
    within: Tensor = torch.stack([(f[y == shape] - means[shape]).square().sum(1).mean() for shape in range(SHAPES)])
    return float((means - means.mean(0)).square().sum(1).mean() / within.mean())
