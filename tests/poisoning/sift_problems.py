"""Data on which the detectors of rows are tried: features planted by hand, and networks trained on stamped digits."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import pytest
import torch
from torch import Tensor, nn

from buckler.data import Poisoned, Rows, digits
from buckler.kinds import Suspicion
from buckler.nets import SmallCNN
from buckler.poisoning.badnets import badnets
from buckler.threat import Share
from buckler.train import fit, started

Sift = Callable[..., Suspicion]


def reader(wide: int, classes: int) -> nn.Module:
    """A model whose features are its inputs."""
    return nn.Sequential(nn.Flatten(), started(lambda: nn.Linear(wide, classes), 0)).eval()


def planted(
    share: float, *, classes: int = 6, rows: int = 120, wide: int = 12, apart: float = 8.0, seed: int = 0
) -> tuple[Tensor, Tensor, Tensor]:
    """Gaussian classes `(N, 1, 1, wide)` in [0, 1], and which rows of class 2 are the share that lies `apart` standard
    deviations from where the class is."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.arange(classes).repeat_interleave(rows)
    centres = 6 * torch.randn(classes, wide, generator=generator)
    x = centres[y] + torch.randn(len(y), wide, generator=generator)
    away = torch.randn(wide, generator=generator)
    bad = torch.zeros(len(y), dtype=torch.bool)
    bad[(y == 2).nonzero().squeeze(1)[: round(share * rows)]] = True
    x[bad] += apart * away / away.norm()
    shuffled = torch.randperm(len(y), generator=generator)
    return (x[shuffled] / 80 + 0.5)[:, None, None], y[shuffled], bad[shuffled]


def trained(data: Rows, seed: int = 0) -> nn.Module:
    return fit(started(lambda: SmallCNN(width=8), seed), data, epochs=10, batch=64, rate=0.1, seed=seed)


@cache
def clean_digits(seed: int = 0) -> tuple[nn.Module, Rows]:
    data = digits(train=True)
    return trained(data, seed), data


@cache
def stamped_digits(rate: float = 0.05, seed: int = 0) -> tuple[nn.Module, Poisoned]:
    """Digits of which `rate` are stamped and called 0, a third of class 0 at 5 %, and a network trained on them."""
    poisoned = badnets(digits(train=True), share=Share(rate), target=0, seed=seed)
    return trained(poisoned.seen, seed), poisoned


def ranking(score: Tensor, bad: Tensor) -> float:
    """The area under the ROC curve, pair by pair: how often a bad row has the higher score."""
    pairs = score[bad][:, None] - score[~bad][None]
    return float((pairs > 0).double().mean() + (pairs == 0).double().mean() / 2)


def recall(found: Suspicion, bad: Tensor) -> float:
    return float(found.flagged[bad].double().mean())


def false_alarms(found: Suspicion, bad: Tensor) -> float:
    return float(found.flagged[~bad].double().mean())


def same_whatever_the_order(run: Callable[[Rows], Suspicion], data: Rows, *, close: float = 1e-4) -> None:
    """The same rows in another order get the same scores and flags."""
    found = run(data)
    order = torch.randperm(len(data[1]), generator=torch.Generator().manual_seed(5))
    moved = run((data[0][order], data[1][order]))
    scale = float(found.score.abs().max())
    assert torch.allclose(moved.score, found.score[order], atol=close * scale), "the score depends on the order"
    assert moved.flagged.equal(found.flagged[order]), "what is flagged depends on the order"


def refuses_one_class(run: Callable[[Rows], Suspicion]) -> None:
    with pytest.raises(ValueError, match="at least two classes"):
        run((torch.rand(20, 1, 1, 12), torch.zeros(20, dtype=torch.long)))
