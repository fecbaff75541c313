"""The loss between views against a loop that follows the paper's formula, and the network that is compared."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from buckler.encoders._contrast import contrast, headed, views


def test_the_loss_is_the_paper_s_formula() -> None:
    torch.manual_seed(0)
    z, temperature, half = torch.randn(12, 5, dtype=torch.float64), 0.3, 6

    def alike(i: int, j: int) -> float:
        return math.exp(float(z[i] @ z[j] / z[i].norm() / z[j].norm()) / temperature)

    def loss(i: int, j: int) -> float:
        return -math.log(alike(i, j) / sum(alike(i, k) for k in range(12) if k != i))

    wanted = [(loss(i, i + half) + loss(i + half, i)) / 2 for i in range(half)]
    torch.testing.assert_close(contrast(z, temperature), torch.tensor(wanted, dtype=torch.float64))


def test_views_that_agree_cost_less_than_views_that_were_swapped() -> None:
    torch.manual_seed(0)
    z = torch.randn(8, 16)
    assert contrast(torch.cat([z, z]), 0.2).mean() < 0.3
    assert contrast(torch.cat([z, z.roll(1, 0)]), 0.2).mean() > 3


def test_views_are_images_of_the_same_kind_and_differ() -> None:
    torch.manual_seed(0)
    x = torch.rand(30, 3, 8, 8)
    one, other = views(0.3)(x), views(0.3)(x)
    assert one.shape == x.shape
    assert one.min() >= 0
    assert one.max() <= 1
    assert ((one - other).abs().amax((1, 2, 3)) > 0.05).all()


def test_a_head_stands_above_the_encoder_and_both_are_drawn_by_the_seed() -> None:
    rows = torch.rand(4, 1, 4, 4), torch.zeros(4, dtype=torch.long)
    made = [headed(lambda: nn.Sequential(nn.Flatten(), nn.Linear(16, 6)), rows, 3, seed) for seed in (1, 1, 2)]
    assert made[0](rows[0]).shape == (4, 3)
    first, again, other = [torch.cat([p.flatten() for p in model.parameters()]) for model in made]
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize(
    ("net", "shape", "says"),
    [
        (nn.Identity, (4, 1, 4, 4), "expected an encoder that gives a matrix"),
        (nn.Flatten, (4, 16), "expected two images or more"),
        (nn.Flatten, (1, 1, 4, 4), "expected two images or more"),
    ],
)
def test_what_cannot_be_pre_trained_is_one_sentence(net, shape, says: str) -> None:
    rows = torch.rand(shape), torch.zeros(shape[0], dtype=torch.long)
    with pytest.raises(ValueError, match=says):
        headed(net, rows, 3, 0)
