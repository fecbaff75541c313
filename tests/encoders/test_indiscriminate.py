"""Indiscriminate poisoning: noise within the ball, from which next to nothing is learnt."""

from __future__ import annotations

import pytest
import torch
from pretraining_worlds import apart, net, world

from buckler.encoders.indiscriminate import indiscriminate
from buckler.encoders.simclr import simclr
from buckler.threat import Share


def test_noise_stays_within_the_ball_and_the_share() -> None:
    x, y = world(64)
    made = indiscriminate((x, y), net=net, share=Share(0.5), radius=0.1, epochs=10, batch=32)
    assert int(made.rows.sum()) == 32
    assert torch.equal(made.x[~made.rows], x[~made.rows])
    assert torch.equal(made.y, y)
    change = (made.x - x).abs()
    assert 0.05 < float(change.max()) <= 0.1 + 1e-6
    assert made.trigger is None
    assert made.prey is None
    with pytest.raises(ValueError, match="radius above 0"):
        indiscriminate((x, y), net=net, radius=0)


def test_next_to_nothing_is_learnt_from_poisoned_rows() -> None:
    x, y = world(128)
    made = indiscriminate((x, y), net=net, radius=0.4, epochs=20, batch=64)
    clean, poisoned = (simclr(rows, net=net, epochs=20, batch=64) for rows in ((x, y), made.seen))
    assert apart(poisoned) < 0.3 * apart(clean)
