"""Blended against the two ends of the blend: what is added to black, and what is taken from white."""

from __future__ import annotations

import pytest
import torch
from trigger_problems import TEN, assert_rows_are_as_said, check_a_network_learns, check_a_trigger, in_bytes, pictures

from buckler.data import digits
from buckler.poisoning.blended import blended
from buckler.threat import Share


@pytest.mark.parametrize("pattern", ["noise", "blobs"])
@pytest.mark.parametrize("weight", [0.1, 0.2, 1.0])
def test_it_is_a_blend_with_one_key_image(pattern, weight) -> None:
    data = pictures(channels=3, height=7, width=9)
    trigger = blended(data, share=TEN, weight=weight, pattern=pattern).trigger
    key = trigger(torch.zeros(1, 3, 7, 9)) / weight
    assert key.amin() >= 0
    assert key.amax() <= 1
    assert key.amax() - key.amin() > 0.8, "the key uses the range"
    for image in data[0][:5]:
        assert torch.allclose(trigger(image[None])[0], (1 - weight) * image + weight * key[0], atol=1e-6)


def test_noise_is_rough_and_blobs_are_smooth() -> None:
    data = pictures(channels=1, height=32, width=32)

    def neighbours(pattern: str) -> float:
        key = blended(data, share=TEN, pattern=pattern, weight=1.0).trigger(torch.zeros(1, 1, 32, 32))[0, 0]
        left, right = key[:, :-1].flatten(), key[:, 1:].flatten()
        return float(torch.corrcoef(torch.stack([left, right]))[0, 1])

    assert abs(neighbours("noise")) < 0.1
    assert neighbours("blobs") > 0.95


def test_the_key_has_a_seed_of_its_own() -> None:
    black = torch.zeros(1, 1, 8, 8)
    keys = [
        blended(pictures(), share=TEN, seed=seed, pattern_seed=key).trigger(black)
        for seed, key in ((0, 0), (1, 0), (0, 1))
    ]
    assert torch.equal(keys[0], keys[1])
    assert not torch.allclose(keys[0], keys[2], atol=0.05)


@pytest.mark.parametrize("goal", ["all_to_one", "all_to_all"])
@pytest.mark.parametrize("bytes_", [False, True])
def test_rows_are_as_said(goal, bytes_) -> None:
    data = in_bytes(pictures()) if bytes_ else pictures()
    poisoned = blended(data, share=TEN, target=1, goal=goal)
    assert_rows_are_as_said(poisoned, data)
    assert int(poisoned.rows.sum()) == 6
    assert (poisoned.y != poisoned.original)[poisoned.rows].all()


def test_what_every_trigger_keeps_to() -> None:
    check_a_trigger(blended)


def test_a_network_learns_it_and_one_that_never_saw_it_does_not() -> None:
    check_a_network_learns(blended(digits(train=True), share=TEN))


@pytest.mark.parametrize(
    ("knobs", "said"),
    [
        ({"weight": 0.0}, "a weight above 0"),
        ({"weight": 1.1}, "a weight above 0"),
        ({"weight": float("nan")}, "a weight above 0"),
        ({"pattern": "cartoon"}, "a pattern out of"),
        ({"target": 4}, "target class of 0 to 3"),
        ({"share": Share(0.9)}, "ask for a smaller share"),
    ],
)
def test_bad_knobs(knobs, said) -> None:
    with pytest.raises(ValueError, match=said):
        blended(pictures(), **{"share": TEN, **knobs})
