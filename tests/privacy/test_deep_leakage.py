"""DLG and iDLG on the kind of network that the papers attack, where they are exact; and nothing out of noise."""

from __future__ import annotations

import copy
from functools import partial
from typing import Literal

import pytest
import torch
from torch import Tensor, nn

from buckler.pictures import matched, psnr
from buckler.privacy._gradients import gradients
from buckler.privacy.deep_leakage import deep_leakage

SHAPE = (1, 8, 8)
leak = partial(deep_leakage, shape=SHAPE)


def sigmoid_net() -> nn.Module:
    """As the papers' network: strided convolutions, sigmoids, and weights uniform in [-0.5, 0.5]."""
    model = nn.Sequential(
        nn.Conv2d(1, 8, 3, 2, 1), nn.Sigmoid(), nn.Conv2d(8, 8, 3, 1, 1), nn.Sigmoid(), nn.Flatten(), nn.Linear(128, 10)
    )
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in model.parameters():
            weight.copy_(torch.rand(weight.shape, generator=draw) - 0.5)
    return model.eval()


def rows(many: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    return torch.rand(many, *SHAPE, generator=draw), torch.randint(0, 10, (many,), generator=draw)


@pytest.mark.parametrize("labels", ["inferred", "sought"])
def test_one_row_is_rebuilt_almost_exactly(labels: Literal["inferred", "sought"]) -> None:
    model = sigmoid_net()
    for seed in range(3):
        x, y = rows(1, seed)
        made = leak(model, gradients(model, x, y), labels=labels)
        assert float(psnr(made.x, x)) > 40
        assert made.y is not None
        assert int(made.y) == int(y)


def test_rows_of_a_batch_are_rebuilt_in_some_order() -> None:
    model, (x, y) = sigmoid_net(), rows(2, 5)
    made = leak(model, gradients(model, x, y), batch=2, steps=600)
    assert made.y is not None
    assert sorted(made.y.tolist()) == sorted(y.tolist())
    assert float(psnr(made.x[matched(made.x, x)], x).min()) > 25


def test_noise_is_no_row() -> None:
    model, (x, y) = sigmoid_net(), rows(1)
    draw = torch.Generator().manual_seed(1)
    sent = tuple(torch.randn(one.shape, generator=draw) * one.std() for one in gradients(model, x, y))
    assert float(psnr(leak(model, sent, steps=50).x, x)) < 12


def test_it_stays_in_the_box_and_leaves_everything_alone() -> None:
    model, (x, y) = sigmoid_net(), rows(1)
    sent = gradients(model, x, y)
    before, state = copy.deepcopy(model.state_dict()), torch.random.get_rng_state()
    first, second = (leak(model, sent, steps=5).x for _ in range(2))
    assert torch.equal(first, second)
    assert bool(((first >= 0) & (first <= 1)).all())
    assert torch.equal(state, torch.random.get_rng_state())
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert all(p.requires_grad and p.grad is None for p in model.parameters())


def test_what_cannot_be_is_said() -> None:
    model, (x, y) = sigmoid_net(), rows(1)
    sent = gradients(model, x, y)
    with pytest.raises(ValueError, match="steps and restarts above 0"):
        leak(model, sent, steps=0)
    with pytest.raises(ValueError, match="it tells nothing"):
        leak(model, tuple(one * 0 for one in sent))
    with pytest.raises(ValueError, match="a gradient for each"):
        leak(model, sent[:-1])
