"""Levels of each class: found where they are planted, and worth more than one level for all."""

from __future__ import annotations

import pytest
import torch
from membership_worlds import listed, log_odds, normal_world
from torch import Tensor

from buckler import stats
from buckler.privacy._farm import halves
from buckler.privacy._shadows import Shadows
from buckler.privacy.class_threshold import class_threshold
from buckler.privacy.loss_threshold import loss_threshold


def area(score: Tensor, member: Tensor) -> float:
    return stats.area(torch.stack([score, member.double()], 1), "r").value


@pytest.mark.parametrize("look", ["entropy", "confidence"])
def test_classes_of_another_level_are_judged_by_their_own(look: str) -> None:
    """The second class is answered 6 surer, member or not: one level for all tells classes, not members."""
    draw, rows = torch.Generator().manual_seed(0), 800
    held = halves(rows, 6, 1)
    y = torch.arange(rows) % 2
    sure = 6.0 * y + 2.0 * held + 0.5 * torch.randn(6, rows, generator=draw)
    answers = [torch.where(y[:, None, None] == 1, log_odds(one).flip(-1), log_odds(one)) for one in sure]
    x = torch.arange(float(rows))[:, None]
    shadows = Shadows(held[1:], answers[1:], y)
    score = class_threshold(listed(answers[0]), x, y, shadows=shadows, look=look)  # pyright: ignore
    assert area(score, held[0]) > 0.95 - 0.05 * (look == "entropy")
    assert area(loss_threshold(listed(answers[0]), x, y), held[0]) < 0.8
    for label in (0, 1):  # the level lies midway between 6 y and 6 y + 2, where the score is 0
        right = (score[y == label] > 0) == held[0][y == label]
        assert float(right.float().mean()) > 0.95


def test_with_one_class_rows_are_in_the_order_of_the_loss() -> None:
    oracle, x, y, _, shadows = normal_world(60, 4, gain=1.0)
    score = class_threshold(oracle, x, y, shadows=shadows, look="confidence")
    plain = loss_threshold(oracle, x, y)
    torch.testing.assert_close(score - score.mean(), plain - plain.mean())


def test_where_no_level_serves_scores_are_finite() -> None:
    oracle, x, y, _, shadows = normal_world(40, 4, gain=0.0)
    never = Shadows(torch.zeros_like(shadows.held), shadows.answers, shadows.labels)
    assert bool(class_threshold(oracle, x, y, shadows=never).isfinite().all())
    with pytest.raises(ValueError, match="shadows that were asked about these"):
        class_threshold(oracle, x[:5], y[:5], shadows=shadows)
