"""Radioactive data: the null over keys, the law of a cosine, the ball, and models that learnt marked rows."""

from __future__ import annotations

from typing import Literal

import pytest
import torch
from owned_worlds import blobs, never_too_small, p_values, small, taught
from torch.nn import functional as F

from buckler.target import Oracle
from buckler.theft.radioactive_data import _beyond, radioactive_data


@pytest.mark.parametrize("looks", ["answers", "weights"])
def test_p_values_are_never_too_small_for_a_fixed_model(looks: Literal["answers", "weights"]) -> None:
    data, suspect = blobs(80), taught(blobs(80, seed=5), 5)
    never_too_small(
        p_values(lambda s: radioactive_data(data, net=small, looks=looks, steps=1, epochs=0, seed=s), suspect, 100)
    )


def test_the_law_of_a_cosine_is_that_of_directions_drawn_by_chance() -> None:
    drawn = F.normalize(torch.randn(40_000, 7, generator=torch.Generator().manual_seed(0)), dim=1)[:, 0]
    for cosine in (-0.4, 0.0, 0.2, 0.6):
        assert _beyond(cosine, 7) == pytest.approx(float((drawn >= cosine).double().mean()), abs=0.01)


@pytest.mark.parametrize("looks", ["answers", "weights"])
def test_a_model_that_learnt_marked_rows_is_claimed_and_others_are_not(looks: Literal["answers", "weights"]) -> None:
    data = blobs(300, noise=0.3)
    made = radioactive_data(data, net=small, marked=0.9, radius=0.25, looks=looks, span=12)
    assert made.data is not None
    assert made.claim(taught(made.data, 3)).p < (0.01 if looks == "answers" else 0.05)
    assert made.claim(taught(blobs(300, seed=8, noise=0.3), 4)).p > 0.01


def test_only_the_share_is_moved_and_only_within_the_ball() -> None:
    x, y = blobs(200)
    made = radioactive_data((x, y), net=small, marked=0.25, radius=0.1, epochs=1)
    assert made.data is not None
    moved = (made.data[0] - x).abs().flatten(1).amax(1)
    assert float(moved.max()) <= 0.1 + 1e-6
    assert abs(int((moved > 0).sum()) - 50) <= 4
    assert torch.equal(made.data[1], y)
    bytes_ = (x * 255).round().to(torch.uint8)
    kept = radioactive_data((bytes_, y), net=small, marked=0.25, radius=0.1, epochs=1).data
    assert kept is not None
    assert kept[0].dtype == torch.uint8


def test_what_cannot_be_marked_is_said() -> None:
    with pytest.raises(ValueError, match="marked share between 0 and 1"):
        radioactive_data(blobs(40), net=small, marked=1.0)
    made = radioactive_data(blobs(80), net=small, looks="weights", epochs=1, steps=1)
    with pytest.raises(ValueError, match="got an oracle"):
        made.claim(Oracle(small(), "scores"))
