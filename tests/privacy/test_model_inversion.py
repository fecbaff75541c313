"""Classes drawn out of weights: a linear model's are its signs; an untrained one's are not the classes."""

from __future__ import annotations

import copy
from functools import partial

import pytest
import torch
from membership_worlds import SIDE
from torch import nn

from buckler.nets import LinearModel
from buckler.privacy.model_inversion import model_inversion
from buckler.train import fit, started

SHAPE = (1, SIDE, SIDE)
CLASSES = torch.arange(4)
drawn = partial(model_inversion, shape=SHAPE)


def test_of_two_classes_of_a_linear_model_the_signs_are_drawn() -> None:
    """The surest input inside the box has a 1 wherever the class's weight is the larger, else a 0."""
    weight = torch.randn(2, SIDE * SIDE, generator=torch.Generator().manual_seed(0)).sign()
    model = LinearModel(weight + torch.tensor([[2.0], [0.0]]) * weight, torch.zeros(2))
    made = drawn(model, torch.arange(2), noise=0.0, steps=300, rate=0.05)
    gap = model.weight[0] - model.weight[1]
    assert torch.equal(made.x[0].flatten() > 0.5, gap > 0)
    assert torch.equal(made.x[1].flatten() > 0.5, gap < 0)
    assert made.y is not None
    assert made.y.tolist() == [0, 1]


def net() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(SIDE * SIDE, 64), nn.ReLU(), nn.Linear(64, 4))


def test_pictures_are_of_what_was_learnt() -> None:
    """Each class is a bright corner: what is drawn is brightest there, and of an untrained network it is not."""
    draw = torch.Generator().manual_seed(1)
    y = torch.randint(0, 4, (160,), generator=draw)
    x = 0.4 * torch.rand(160, *SHAPE, generator=draw)
    for row, label in enumerate(y.tolist()):
        top, left = 3 * (label // 2), 3 * (label % 2)
        x[row, :, top : top + 3, left : left + 3] += 0.6
    model = fit(started(net, 0), (x, y), epochs=20, batch=32)

    def corners(of: nn.Module) -> list[int]:
        made = drawn(of, CLASSES, steps=100).x[:, 0]
        held = torch.stack([made[:, 3 * (k // 2) :, 3 * (k % 2) :][:, :3, :3].mean((1, 2)) for k in range(4)], 1)
        return held.argmax(1).tolist()

    assert corners(model) == [0, 1, 2, 3]
    assert sum(a == b for a, b in zip(corners(started(net, 5).eval()), range(4), strict=True)) < 4


def test_it_leaves_everything_alone_and_repeats_itself() -> None:
    model = started(net, 0)
    before, state = copy.deepcopy(model.state_dict()), torch.random.get_rng_state()
    first, second = (drawn(model, CLASSES, steps=5).x for _ in range(2))
    assert torch.equal(first, second)
    assert first.shape == (4, *SHAPE)
    assert torch.equal(state, torch.random.get_rng_state())
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert all(p.requires_grad and p.grad is None for p in model.parameters())


def test_knobs_out_of_range_are_said() -> None:
    with pytest.raises(ValueError, match="steps and rate above 0"):
        drawn(started(net, 0), CLASSES, steps=0)
    with pytest.raises(ValueError, match="noise and smooth of 0 or more"):
        drawn(started(net, 0), CLASSES, noise=-1.0)
