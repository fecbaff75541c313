"""BadNets against patches set pixel by pixel, by hand."""

from __future__ import annotations

import pytest
import torch
from trigger_problems import TEN, assert_rows_are_as_said, check_a_network_learns, check_a_trigger, in_bytes, pictures

from buckler.data import digits
from buckler.poisoning.badnets import badnets
from buckler.threat import Share


def by_hand(image: torch.Tensor, size: int, margin: int, checkered: bool) -> torch.Tensor:
    image = image.clone()
    height, width = image.shape[1:]
    for down in range(size):
        for across in range(size):
            white = (down + across) % 2 == 0 if checkered else True
            for channel in range(image.shape[0]):
                image[channel, height - margin - size + down, width - margin - size + across] = 1.0 if white else 0.0
    return image


@pytest.mark.parametrize(("size", "margin", "pattern"), [(3, 1, "checkerboard"), (2, 0, "white"), (1, 5, "white")])
def test_the_patch_is_where_and_what_was_asked_for(size, margin, pattern) -> None:
    data = pictures(channels=3, height=7, width=9)
    poisoned = badnets(data, share=TEN, size=size, margin=margin, pattern=pattern)
    for row in poisoned.rows.nonzero().flatten().tolist():
        assert torch.equal(poisoned.x[row], by_hand(data[0][row], size, margin, pattern == "checkerboard"))
    held, mirrored = data[0], data[0].flip(3)
    assert not torch.equal(poisoned.trigger(mirrored), poisoned.trigger(held).flip(3)), "a flip moves the patch"
    assert not poisoned.survives


@pytest.mark.parametrize("goal", ["all_to_one", "all_to_all"])
@pytest.mark.parametrize("bytes_", [False, True])
def test_rows_are_as_said(goal, bytes_) -> None:
    data = in_bytes(pictures()) if bytes_ else pictures()
    poisoned = badnets(data, share=TEN, target=2, goal=goal)
    assert_rows_are_as_said(poisoned, data)
    assert int(poisoned.rows.sum()) == 6, "a tenth of 60"
    assert (poisoned.y != poisoned.original)[poisoned.rows].all()
    if goal == "all_to_one":
        assert (poisoned.y[poisoned.rows] == 2).all()
        assert poisoned.class_rate == pytest.approx(6 / (15 + 6))
    else:
        assert all(int(new) == (int(old) + 1) % 4 for old, new in zip(data[1], poisoned.wanted(data[1]), strict=True))


def test_what_every_trigger_keeps_to() -> None:
    check_a_trigger(badnets)


def test_a_network_learns_it_and_one_that_never_saw_it_does_not() -> None:
    check_a_network_learns(badnets(digits(train=True), share=TEN))


@pytest.mark.parametrize(
    ("knobs", "said"),
    [
        ({"size": 8}, "a patch that fits"),
        ({"size": 0}, "a patch that fits"),
        ({"margin": -1}, "a patch that fits"),
        ({"target": 4}, "target class of 0 to 3"),
        ({"target": -1}, "target class of 0 to 3"),
        ({"share": Share(0.9)}, "ask for a smaller share"),
    ],
)
def test_bad_knobs(knobs, said) -> None:
    with pytest.raises(ValueError, match=said):
        badnets(pictures(), **{"share": TEN, **knobs})
