"""STRIP against a naive loop over blends, a network whose entropies are known, and stamped digits."""

from __future__ import annotations

import math

import pytest
import torch
from sift_problems import (
    clean_digits,
    false_alarms,
    planted,
    ranking,
    reader,
    recall,
    refuses_one_class,
    same_whatever_the_order,
    stamped_digits,
)
from torch import Tensor, nn

from buckler.data import digits
from buckler.nets import SmallCNN
from buckler.poisoning._groups import ordered
from buckler.poisoning.strip import strip
from buckler.train import started


class Corner(nn.Module):
    """Sure of class 0 where the first pixel is white, and undecided between three classes where it is not."""

    def forward(self, x: Tensor) -> Tensor:
        white = x.flatten(1)[:, 0] >= 0.999
        return torch.stack([1000.0 * white, torch.zeros(len(x)), torch.zeros(len(x))], 1)


def test_the_entropy_is_that_of_the_answers_blend_by_blend() -> None:
    model, (x, y) = started(lambda: SmallCNN(width=4), 0).eval().requires_grad_(False), digits(train=True)
    x, y = x[:40], y[:40]
    found = strip(model, (x, y), overlays=7, weight=0.6)
    overlays = x[ordered(x, y, 0)[(2 * torch.arange(7) + 1) * 40 // 14]]
    for row in range(40):
        total = 0.0
        for overlay in overlays:
            said = model((x[row] + 0.6 * overlay).clamp(0, 1)[None]).softmax(1)[0].double()
            total -= float((said * said.clamp_min(1e-30).log()).sum())
        assert float(found.score[row]) == pytest.approx(-total / 7, abs=1e-4)


def test_answers_that_nothing_moves_have_no_entropy_and_the_others_what_is_known() -> None:
    x = torch.rand(200, 1, 4, 4, generator=torch.Generator().manual_seed(0)) * 0.4
    x[:10, :, 0, 0] = 1
    y = torch.arange(200) % 3
    order = torch.cat([torch.arange(190) + 10, torch.arange(10)])
    found = strip(Corner(), (x[order], y), overlays=20)
    stamped = order < 10
    overlaid = float(((ordered(x[order], y, 0)[torch.arange(20) * 10 + 5]) >= 190).double().mean())
    assert torch.allclose(found.score[stamped], torch.zeros(10), atol=1e-6)
    assert torch.allclose(found.score[~stamped], torch.full((190,), -math.log(3) * (1 - overlaid)), atol=1e-5)


def test_the_lower_tail_of_a_normal_distribution_is_flagged() -> None:
    """Where entropies are normally distributed, as the paper supposes, as many are flagged as asked for."""

    class Normal(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            wanted = x.flatten(1)[:, 0].double()  # an entropy: two classes whose odds give it, by bisection
            low, high = torch.zeros_like(wanted), torch.full_like(wanted, 0.5)
            for _ in range(60):
                middle = (low + high) / 2
                entropy = -(middle * middle.log() + (1 - middle) * (1 - middle).log())
                low, high = torch.where(entropy < wanted, middle, low), torch.where(entropy < wanted, high, middle)
            return torch.stack([low.log(), (1 - low).log()], 1)

    levels = torch.distributions.Normal(0.35, 0.07).icdf((torch.arange(2000) + 0.5) / 2000)
    x, y = levels.view(-1, 1, 1, 1).expand(-1, 1, 2, 2).clone(), torch.arange(2000) % 2
    for alarms in (0.01, 0.05):
        found = strip(Normal(), (x, y), overlays=2, weight=0.0, alarms=alarms)
        assert float(found.flagged.float().mean()) == pytest.approx(alarms, abs=0.002)
        assert found.score[found.flagged].min() > found.score[~found.flagged].max()


def test_clean_digits_are_hardly_flagged() -> None:
    assert float(strip(*clean_digits(), overlays=32).flagged.float().mean()) < 0.05


def test_stamped_digits_are_found() -> None:
    model, poisoned = stamped_digits()
    found = strip(model, poisoned.seen, overlays=32)
    assert ranking(found.score, poisoned.rows) > 0.9
    assert false_alarms(found, poisoned.rows) < 0.05
    assert recall(strip(model, poisoned.seen, overlays=32, alarms=0.1), poisoned.rows) > 0.7


def test_the_order_of_the_rows_does_not_matter_and_the_seed_does() -> None:
    model, (x, y) = clean_digits()
    data = (x[:200], y[:200])
    same_whatever_the_order(lambda rows: strip(model, rows, overlays=8), data)
    scores = [strip(model, data, overlays=8, seed=seed).score for seed in (0, 0, 1)]
    assert torch.equal(scores[0], scores[1])
    assert not torch.equal(scores[0], scores[2])


def test_bad_input_is_one_sentence() -> None:
    refuses_one_class(lambda data: strip(reader(12, 2), data, overlays=4))
    x, y, _ = planted(0.2, rows=10)
    for many in (0, 61):
        with pytest.raises(ValueError, match="expected 1 to 60 overlays"):
            strip(reader(12, 6), (x, y), overlays=many)
    with pytest.raises(ValueError, match="share of false alarms"):
        strip(reader(12, 6), (x, y), overlays=4, alarms=0.5)
