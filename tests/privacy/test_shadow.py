"""The attack network learns what shadows show: a bend that no threshold sees, and nothing where there is nothing."""

from __future__ import annotations

import pytest
import torch
from membership_worlds import listed, log_odds, normal_world
from torch import Tensor

from buckler import stats
from buckler.privacy._farm import halves
from buckler.privacy._shadows import Shadows
from buckler.privacy.shadow import shadow


def area(scores: Tensor, member: Tensor) -> stats.Estimate:
    return stats.area(torch.stack([scores, member.double()], 1), "r", 0.999)


def test_members_are_found_and_nobody_where_nothing_was_learnt() -> None:
    for gain, known in ((2.0, True), (0.0, False)):
        oracle, x, y, member, shadows = normal_world(800, 4, gain=gain)
        estimate = area(shadow(oracle, x, y, shadows=shadows, epochs=2), member)
        assert (estimate.low > 0.6) is known
        assert (estimate.low <= 0.5 <= estimate.high) is not known


def test_answers_that_a_threshold_orders_wrong_are_learnt() -> None:
    """Members are answered with odds near those of other rows' middle: neither more sure nor less."""
    rows, draw = 1000, torch.Generator().manual_seed(0)
    held = torch.cat([halves(rows, 2, 5)[:1], halves(rows, 4)])
    wide = 3 * torch.randn(5, rows, generator=draw, dtype=torch.double)
    answers = [log_odds(torch.where(h, 0.2 * v, v)) for h, v in zip(held, wide, strict=True)]
    x, y = torch.arange(rows, dtype=torch.float32)[:, None], torch.zeros(rows, dtype=torch.long)
    scores = shadow(listed(answers[0]), x, y, shadows=Shadows(held[1:], answers[1:], y), epochs=5)
    assert area(scores, held[0]).low > 0.7
    threshold = area(log_odds_of(answers[0]), held[0])
    assert threshold.high < 0.65


def log_odds_of(answers: Tensor) -> Tensor:
    return (answers[:, 0, 0] - answers[:, 0, 1]).double()


def test_the_seed_decides_and_other_rows_are_refused() -> None:
    oracle, x, y, _, shadows = normal_world(100, 2, gain=1.0)
    one, same, other = (shadow(oracle, x, y, shadows=shadows, epochs=1, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    with pytest.raises(ValueError, match="asked about these 99 rows"):
        shadow(oracle, x[:99], y[:99], shadows=shadows)
