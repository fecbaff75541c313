"""Classes drawn among pictures like public ones: near what was learnt, nowhere near it for an untrained network."""

from __future__ import annotations

import copy
from functools import partial

import pytest
import torch
from membership_worlds import SIDE
from torch import Tensor, nn

from buckler.data import Rows
from buckler.pictures import apart
from buckler.privacy.generative_inversion import generative_inversion
from buckler.privacy.model_inversion import model_inversion
from buckler.train import fit, started

SHAPE = (1, SIDE, SIDE)
CLASSES = torch.arange(4)
MEANS = torch.zeros(4, *SHAPE)
for place in range(4):
    MEANS[place, :, 3 * (place // 2) :, 3 * (place % 2) :][:, :3, :3] = 0.8


def corners(many: int, seed: int) -> Rows:
    draw = torch.Generator().manual_seed(seed)
    y = torch.randint(0, 4, (many,), generator=draw)
    return (MEANS[y] + 0.2 * torch.rand(many, *SHAPE, generator=draw) - 0.1).clamp(0, 1), y


def net() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(SIDE * SIDE, 64), nn.ReLU(), nn.Linear(64, 4))


drawn = partial(generative_inversion, shape=SHAPE, public=corners(100, 5), epochs=30, steps=100)


def right(pictures: Tensor) -> list[bool]:
    return (apart(pictures, MEANS).argmin(1) == CLASSES).tolist()


def test_classes_are_drawn_nearer_than_without_public_rows() -> None:
    model = fit(started(net, 0), corners(160, 0), epochs=20, batch=32)
    made = drawn(model, CLASSES)
    assert made.y is not None
    assert torch.equal(made.y, CLASSES)
    assert all(right(made.x))
    plain = model_inversion(model, CLASSES, shape=SHAPE, steps=100).x
    assert float(apart(made.x, MEANS).diag().mean()) < 0.5 * float(apart(plain, MEANS).diag().mean())


def test_an_untrained_network_has_no_classes_to_draw() -> None:
    found = [one for seed in range(5) for one in right(drawn(started(net, 50 + seed).eval(), CLASSES).x)]
    assert sum(found) < 14  # of twenty, five by chance


def test_it_leaves_everything_alone_and_repeats_itself() -> None:
    model = started(net, 0)
    before, state = copy.deepcopy(model.state_dict()), torch.random.get_rng_state()
    first, second = (drawn(model, CLASSES, steps=3, epochs=1).x for _ in range(2))
    assert torch.equal(first, second)
    assert first.shape == (4, *SHAPE)
    assert bool(((first >= 0) & (first <= 1)).all())
    assert torch.equal(state, torch.random.get_rng_state())
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert all(p.requires_grad and p.grad is None for p in model.parameters())


def test_what_cannot_be_is_said() -> None:
    with pytest.raises(ValueError, match="expected two public rows or more, each"):
        drawn(started(net, 0), CLASSES, public=corners(1, 0))
    with pytest.raises(ValueError, match="codes, steps and rate above 0"):
        drawn(started(net, 0), CLASSES, codes=0)
