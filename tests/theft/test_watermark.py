"""Trigger sets: the null over keys, and models that carry the mark."""

from __future__ import annotations

import pytest
import torch
from owned_worlds import blobs, drawn_by_chance, never_too_small, p_values, small, taught

from buckler.theft.watermark import watermark


def test_p_values_are_never_too_small_for_a_fixed_model() -> None:
    data = blobs(40)
    never_too_small(
        p_values(lambda seed: watermark(data, net=small, epochs=0, seed=seed), drawn_by_chance(None, 7), 250)
    )


def test_labels_do_not_follow_the_images() -> None:
    """A model that answers every trigger alike, whatever it is, matches one in K over keys."""
    data, constant = blobs(40), drawn_by_chance(None, 7)
    with torch.no_grad():
        constant.get_parameter("weight").zero_()
    never_too_small(p_values(lambda seed: watermark(data, net=small, epochs=0, seed=seed), constant, 250))


def test_a_marked_model_is_claimed_and_others_are_not() -> None:
    data = blobs(200)
    made = watermark(data, net=small, triggers=30, per_batch=30, epochs=20, batch=32)
    assert made.model is not None
    assert made.claim(made.model).p < 1e-3
    assert made.claim(made.model).queries == 30
    assert min(made.claim(taught(blobs(200, seed=seed), seed)).p for seed in (5, 6)) > 0.01
    again = watermark(data, net=small, triggers=30, per_batch=30, epochs=20, batch=32)
    assert again.claim(made.model) == made.claim(made.model)
    assert watermark(data, net=small, triggers=30, epochs=0, seed=1).claim(made.model).p > 0.01


def test_rows_that_are_no_images_are_marked_too() -> None:
    x, y = blobs(100)
    made = watermark((x.flatten(1), y), net=small, triggers=20, epochs=30, batch=32)
    assert made.model is not None
    assert made.claim(made.model).p < 1e-3


def test_what_cannot_be_marked_is_said() -> None:
    with pytest.raises(ValueError, match="two classes or more"):
        watermark((torch.rand(5, 1, 4, 4), torch.zeros(5, dtype=torch.long)), net=small)
    with pytest.raises(ValueError, match="triggers and per_batch of 1 or more, got 0"):
        watermark(blobs(9), net=small, triggers=0)
