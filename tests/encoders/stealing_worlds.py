"""Encoders that cost nothing: random linear ones, and networks small enough to copy them in a moment."""

from __future__ import annotations

import torch
from scipy import stats as scipy_stats
from torch import Tensor, nn

from buckler.data import Rows

SIDE, WIDE = 4, 12


def rows(many: int, seed: int = 1) -> Rows:
    """Images `(many, 1, 4, 4)` around four patterns that are the same for every seed, and which pattern."""
    draw = torch.Generator().manual_seed(seed)
    patterns = torch.rand(4, 1, SIDE, SIDE, generator=torch.Generator().manual_seed(99))
    y = torch.randint(4, (many,), generator=draw)
    return (patterns[y] + 0.2 * torch.randn(many, 1, SIDE, SIDE, generator=draw)).clamp(0, 1), y


def random_encoder(seed: int, wide: int = WIDE) -> nn.Module:
    """A layer drawn by `seed`: as good as any other to know nothing of a key."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Flatten(), nn.Linear(SIDE * SIDE, wide)).eval()


def net() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(SIDE * SIDE, WIDE))


def deep(wide: int = WIDE) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(SIDE * SIDE, 48), nn.ReLU(), nn.Linear(48, wide))


def closeness(copy: nn.Module, model: nn.Module) -> float:
    """The mean cosine of features of rows that nobody was asked about, each less their mean."""
    x, _ = rows(200, 77)
    with torch.no_grad():
        a, b = (one(x) - one(x).mean(0) for one in (copy, model))
    return float(nn.functional.cosine_similarity(a, b).mean())


def never_too_small(values: Tensor) -> None:
    """P(p <= level) is at most the level, up to what chance does once in ten thousand; and not all p-values are one."""
    for level in (0.02, 0.05, 0.1, 0.25, 0.5, 0.8):
        hits = int((values <= level + 1e-12).sum())
        assert float(scipy_stats.binom.sf(hits - 1, len(values), level)) > 1e-4, (level, hits / len(values))
    assert 0.3 < float(values.mean()) < 0.8
