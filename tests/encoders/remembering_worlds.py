"""Encoders that nobody trained and that remember images all the same: what an inference of membership must find."""

from __future__ import annotations

from collections.abc import Callable

import torch
from scipy import stats as scipy_stats
from torch import Tensor, nn
from torch.nn import functional as F

from buckler import nets, stats
from buckler.data import Rows
from buckler.encoders._shadowed import Shadows
from buckler.kinds import Encoder
from buckler.stats import Estimate
from buckler.subject import Subject
from buckler.train import started

WIDE = 24


def images(many: int, seed: int = 0) -> Tensor:
    """Smooth images `(many, 1, 8, 8)` in [0, 1], of one distribution."""
    coarse = torch.rand(many, 1, 5, 5, generator=torch.Generator().manual_seed(seed))
    return F.interpolate(coarse, size=(8, 8), mode="bilinear", align_corners=True)


def rows(many: int, seed: int = 0) -> Rows:
    x = images(many, seed)
    return x, 2 * (x[:, 0, 0, 0] > 0.5).long() + (x[:, 0, 7, 7] > 0.5).long()


class Remembering(nn.Module):
    """A linear map, and beside it a vector of its own for the remembered image that is nearest."""

    def __init__(self, memory: Tensor, seed: int = 0, strength: float = 8.0) -> None:
        super().__init__()
        draw = torch.Generator().manual_seed(seed)
        self.map = nn.Linear(memory[0].numel(), WIDE)
        self.map.weight = nn.Parameter(torch.randn(WIDE, memory[0].numel(), generator=draw) / 8)
        self.memory = nn.Buffer(torch.cat([memory, memory.flip(3)]).flatten(1))
        self.codes = nn.Buffer(F.normalize(torch.randn(len(memory), WIDE, generator=draw), dim=1).repeat(2, 1))
        self.strength = strength

    def forward(self, x: Tensor) -> Tensor:
        near = -torch.cdist(x.flatten(1), self.memory).square()
        weight = (near / 0.3).softmax(1) * (near.amax(1, keepdim=True) / 3).exp()
        return self.map(x.flatten(1)) + self.strength * weight @ self.codes


def remembering(data: Rows, *, net: Callable[[], nn.Module], batch: int = 64, seed: int = 0) -> Encoder:
    """Pre-training that remembers, in no time."""
    del net, batch
    return Remembering(data[0], seed).eval()


def forgetting(data: Rows, *, net: Callable[[], nn.Module], batch: int = 64, seed: int = 0) -> Encoder:
    """Pre-training that learns nothing from anybody."""
    del net, batch
    return Remembering(data[0], seed, strength=0.0).eval()


def shadows(many: int = 3, each: int = 60) -> Shadows:
    parts = tuple(images(each, 100 + index) for index in range(many))
    return Shadows(tuple(Remembering(x, 7 + i) for i, x in enumerate(parts)), parts, images(60, 99))


def sides(many: int = 100) -> tuple[Tensor, Tensor]:
    """Members first, and who is one."""
    return torch.cat([images(many, 1), images(many, 2)]), torch.arange(2 * many) < many


def auc(scores: Tensor, member: Tensor) -> Estimate:
    return stats.area(torch.stack([scores, member.to(scores)], 1), "ranked")


def subject() -> Subject:
    model = started(nets.SmallCNN, 0).eval()
    return Subject("smooth", model, rows(400, 4), train=rows(300, 3), net=nets.SmallCNN)


def uniform(p: list[float]) -> float:
    """How probable p-values are that are at least as far from uniform."""
    return float(scipy_stats.kstest(p, "uniform").pvalue)
