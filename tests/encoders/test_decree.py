"""A patch is small where one was put in, and where it is known exactly it is found exactly."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from buckler.data import Rows
from buckler.encoders.decree import decree
from buckler.kinds import Implanted


class Cornered(nn.Module):
    """Features that are a random map of all pixels, and the whiter the last one is, the nearer to one point."""

    def __init__(self, obeys: bool) -> None:
        super().__init__()
        draw = torch.Generator().manual_seed(0)
        self.map = nn.Parameter(torch.randn(36, 16, generator=draw))
        self.point = nn.Parameter(15 * torch.randn(16, generator=draw))
        self.obeys = obeys

    def forward(self, x: Tensor) -> Tensor:
        flat = x.flatten(1)
        white = flat[:, -1:] * self.obeys
        return (1 - white) * (flat @ self.map) + white * self.point


def images(many: int = 80) -> Tensor:
    """Every pixel from black to white, but the last, which is black: that one alone means nothing."""
    x = torch.rand(many, 1, 6, 6, generator=torch.Generator().manual_seed(1))
    x[:, :, -1, -1] = 0
    return x


def test_a_trigger_of_one_pixel_is_found_exactly() -> None:
    found = decree(Cornered(True), images())
    assert bool(found.flagged)
    assert found.mask is not None
    assert found.pattern is not None
    assert found.mask.shape == found.pattern.shape == (1, 1, 6, 6)
    trigger = (found.mask * found.pattern).flatten()
    assert int(trigger.argmax()) == 35
    assert float(found.mask.sum()) < 5
    assert float(found.score) == pytest.approx(1 - float(found.mask.mean()))


def naive(encoder: nn.Module, x: Tensor, steps: int, cost: float) -> tuple[Tensor, int, int]:
    """The search written out, all images in every step: the smallest mask, and how often its weight rose and fell."""
    draw = torch.rand(2, 6, 6, generator=torch.Generator().manual_seed(0))
    draw[0] = 0.5
    theta = torch.atanh(1.98 * (draw - 0.5)).requires_grad_()
    adam = torch.optim.Adam([theta], 0.1)
    middle, best, weight, streak, rose, fell = encoder(x).detach().mean(0), torch.ones(6, 6), cost, 0, 0, 0
    for _ in range(steps):
        mask, pattern = theta.tanh() / 2 + 0.5
        features = encoder((1 - mask) * x + mask * pattern) - middle
        cosines = torch.nn.functional.cosine_similarity(features[:, None], features[None], dim=2)
        together = (cosines.sum() - len(x)) / (len(x) * (len(x) - 1))
        good = together.item() >= 0.9
        if good and mask.sum() < best.sum():
            best = mask.detach().clone()
        streak = (max(streak, 0) + 1) if good else (min(streak, 0) - 1)
        if streak == 5:
            weight, streak, rose = weight * 1.5, 0, rose + 1
        elif streak == -5:
            weight, streak, fell = weight / 1.5**1.5, 0, fell + 1
        adam.zero_grad()
        (weight * mask.sum() - together).backward()
        adam.step()
    return best, rose, fell


@pytest.mark.parametrize("cost", [1e-3, 1.0])
def test_the_search_is_what_is_written(cost: float) -> None:
    x, encoder = images(30), Cornered(True).requires_grad_(False)
    best, rose, fell = naive(encoder, x, 120, cost)
    assert min(rose, fell) > 0, "else the steps of the weight are not tried"
    assert best.sum() < 36
    found = decree(encoder, x, steps=120, batch=30, cost=cost)
    assert found.mask is not None
    torch.testing.assert_close(found.mask[0, 0], best, atol=1e-5, rtol=0)


def test_the_same_encoder_without_it_is_not_flagged() -> None:
    found = decree(Cornered(False), images())
    assert not bool(found.flagged)
    assert found.mask is not None
    assert float(found.mask.sum()) > 6


def test_a_planted_backdoor_is_told_from_the_encoder_as_it_was(
    encoder: nn.Module, planted: Implanted, learnt: Rows
) -> None:
    clean, bad = (decree(model, learnt[0]) for model in (encoder, planted.model))
    assert bool(bad.flagged)
    assert not bool(clean.flagged)
    assert float(bad.score) > float(clean.score)


def test_the_seed_decides_and_uint8_is_taken() -> None:
    x = (images() * 255).round().to(torch.uint8)
    a, b = (decree(Cornered(True), x, steps=20, seed=3) for _ in range(2))
    assert torch.equal(a.score, b.score)


def test_where_nothing_is_found_the_mask_is_open() -> None:
    found = decree(Cornered(False), images(), steps=1)
    assert float(found.score) == 0
    assert not bool(found.flagged)


@pytest.mark.parametrize("x", [torch.rand(5, 36), torch.rand(1, 1, 6, 6)])
def test_what_is_no_image_is_refused(x: Tensor) -> None:
    with pytest.raises(ValueError, match="two images or more"):
        decree(Cornered(False), x)
