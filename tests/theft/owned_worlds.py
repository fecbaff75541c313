"""Small worlds for claims of ownership: four blobs in 4 x 4 pixels, networks of few neurons, and models nobody taught.

What claims promise is about the draw of the key, so most of it is tested on models that nobody trained.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from scipy import stats as scipy_stats
from torch import Tensor, nn

from buckler.data import Rows
from buckler.kinds import Owned
from buckler.nets import LinearModel
from buckler.subject import Subject
from buckler.train import fit, started

CLASSES = 4


def blobs(many: int, *, seed: int = 0, noise: float = 0.15) -> Rows:
    """Rows `(many, 1, 4, 4)` around one of four centres that are the same for every seed."""
    draw = torch.Generator().manual_seed(seed)
    centres = torch.rand(CLASSES, 1, 4, 4, generator=torch.Generator().manual_seed(99))
    y = torch.randint(CLASSES, (many,), generator=draw)
    return (centres[y] + noise * torch.randn(many, 1, 4, 4, generator=draw)).clamp(0, 1), y


def small() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, CLASSES))


def taught(data: Rows, seed: int, epochs: float = 15) -> nn.Module:
    return fit(started(small, seed), data, epochs=epochs, batch=32, seed=seed)


def drawn_by_chance(_data: Rows | None, seed: int) -> nn.Module:
    """A linear model of weights drawn by `seed`: as good as any other to know nothing of a key."""
    draw = torch.Generator().manual_seed(seed)
    return LinearModel(torch.randn(CLASSES, 16, generator=draw), torch.randn(CLASSES, generator=draw) / 4).eval()


def p_values(keyed: Callable[[int], Owned], suspect: nn.Module, keys: int) -> Tensor:
    """What every one of so many keys says of one suspect."""
    return torch.tensor([keyed(seed).claim(suspect).p for seed in range(keys)], dtype=torch.double)


def never_too_small(values: Tensor) -> None:
    """P(p <= level) is at most the level, up to what chance does once in ten thousand; and not all p-values are one."""
    for level in (0.01, 0.05, 0.1, 0.25, 0.5, 0.8):
        hits = int((values <= level + 1e-12).sum())
        assert float(scipy_stats.binom.sf(hits - 1, len(values), level)) > 1e-4, (level, hits / len(values))
    assert 0.35 < float(values.mean()) < 0.8


def subject(rows: int = 360) -> Subject:
    train = blobs(rows, seed=1)
    return Subject("blobs", taught(train, 0), blobs(120, seed=2), train, net=small)
