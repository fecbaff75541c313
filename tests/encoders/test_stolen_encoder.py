"""StolenEncoder on encoders whose copies are known to be possible."""

from __future__ import annotations

import pytest
import torch
from stealing_worlds import WIDE, closeness, deep, net, random_encoder, rows

from buckler.encoders.stolen_encoder import stolen_encoder
from buckler.target import Oracle


def test_a_linear_encoder_is_copied_and_another_is_not() -> None:
    """It is normalised features that are learnt, so the copy is a multiple, not the same."""
    model, oracle = random_encoder(0), Oracle(random_encoder(0), "features")
    copy = stolen_encoder(oracle, rows(150)[0], net=net, epochs=20, rate=0.3)
    assert oracle.asked == 150
    assert closeness(copy, model) > 0.95
    assert closeness(copy, random_encoder(1)) < 0.5


@pytest.mark.parametrize("distance", ["l2", "l1", "cosine"])
def test_views_and_distances(distance: str) -> None:
    oracle = Oracle(random_encoder(0), "features")
    copy = stolen_encoder(oracle, rows(150)[0], net=deep, distance=distance, weight=0.1, epochs=20, rate=0.05)  # pyright: ignore[reportArgumentType]
    assert oracle.asked == 150, "views cost no queries"
    assert closeness(copy, random_encoder(0)) > 0.6


def test_a_copy_is_as_wide_as_the_answers_and_keeps_to_the_budget() -> None:
    oracle = Oracle(random_encoder(0, 20), "features", 30)
    copy = stolen_encoder(oracle, (rows(60)[0] * 255).to(torch.uint8), net=net, epochs=1)
    assert oracle.asked == 30
    assert copy(rows(3)[0]).shape == (3, 20)
    assert WIDE != 20


def test_what_is_not_shown_is_not_learnt() -> None:
    """Half of the features are always 0: a thief who knows leaves its own there as they are."""

    def half(x: torch.Tensor) -> torch.Tensor:
        return random_encoder(0)(x) * (torch.arange(WIDE) < WIDE // 2)

    made = [stolen_encoder(Oracle(half, "features"), rows(100)[0], net=net, shown=s, decay=0.0) for s in (True, False)]
    fresh = random_encoder(0)
    start = stolen_encoder(Oracle(half, "features"), rows(100)[0], net=net, epochs=0)
    ends = [model.get_parameter("1.weight")[WIDE // 2 :] for model in (*made, start)]
    assert torch.allclose(ends[0], ends[2], atol=1e-6)
    assert not torch.allclose(ends[1], ends[2], atol=1e-2)
    assert fresh.get_parameter("1.weight").shape == start.get_parameter("1.weight").shape


def test_what_makes_no_sense_is_said() -> None:
    with pytest.raises(ValueError, match="weight of 0 or more, got -1"):
        stolen_encoder(Oracle(random_encoder(0), "features"), rows(9)[0], net=net, weight=-1)
    with pytest.raises(ValueError, match="two rows or more, got 9 and 1"):
        stolen_encoder(Oracle(random_encoder(0), "features", 1), rows(9)[0], net=net)
