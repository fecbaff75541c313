"""What every way of training safely must keep to, on a few hundred digits with a small network."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from buckler.data import Poisoned, Rows, digits
from buckler.kinds import Cultivated
from buckler.nets import SmallCNN
from buckler.poisoning.badnets import badnets
from buckler.threat import Share

net = partial(SmallCNN, width=8)


def few(many: int = 200) -> Rows:
    x, y = digits(train=True)
    return x[:many], y[:many]


def shapes(noise: float, many: int = 400) -> Poisoned:
    """Four shapes under noise, 16 pixels wide, a tenth of them with a small patch in the corner and label 0."""
    generator = torch.Generator().manual_seed(0)
    y = torch.randint(0, 4, (many,), generator=generator)
    drawn = F.interpolate(torch.rand(4, 1, 4, 4, generator=generator), size=16)
    x = (1 - noise) * drawn[y] + noise * torch.rand(many, 1, 16, 16, generator=generator)
    return badnets((x, y), share=Share(0.1), margin=0)


def auroc(score: Tensor, positive: Tensor) -> float:
    """How often a positive row scores higher than another, ties half: every pair is looked at."""
    gap = score[positive][:, None] - score[~positive][None]
    return float(((gap > 0).double() + 0.5 * (gap == 0).double()).mean())


def same_weights(one: nn.Module, other: nn.Module) -> bool:
    left, right = one.state_dict(), other.state_dict()
    return all(torch.equal(left[name], right[name]) for name in left)


def check_a_cultivator(method: Callable[..., Cultivated], *, rows: int = 120, images: bool = True) -> Cultivated:
    """Same seed, same model; data and the global random state as before; one record per row; bad input refused."""
    x, y = few(rows)
    before, state = (x.clone(), y.clone()), torch.random.get_rng_state()
    first = method((x, y), net=net, seed=1)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert torch.equal(x, before[0])
    assert torch.equal(y, before[1])
    assert same_weights(first.model, method((x, y), net=net, seed=1).model)
    assert not same_weights(first.model, method((x, y), net=net, seed=2).model)
    assert not first.model.training
    assert first.suspicion is not None
    assert first.suspicion.score.shape == first.suspicion.flagged.shape == (rows,)
    assert first.suspicion.score.isfinite().all()
    assert first.suspicion.flagged.dtype == torch.bool
    assert all(record.ndim == 2 and record.shape[1] == rows for record in first.dynamics.values())
    assert len(first.dynamics) > 0
    pixels = (x * 255).round().to(torch.uint8)
    held, floats = method((pixels, y), net=net, seed=1), method((pixels.float() / 255, y), net=net, seed=1)
    assert same_weights(held.model, floats.model), "rows held as uint8 are the same rows"
    with pytest.raises(ValueError, match="expected rows of at least two classes"):
        method((x, torch.zeros_like(y)), net=net)
    if images:
        with pytest.raises(ValueError, match=r"expected images \(N, C, H, W\)"):
            method((x.flatten(1), y), net=net)
    with pytest.raises(ValueError, match="one whole number per row"):
        method((x, y.float()), net=net)
    with pytest.raises(ValueError, match="untrained nn.Module"):
        method((x, y), net=lambda: 3)
    return first
