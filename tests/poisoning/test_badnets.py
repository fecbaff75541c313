"""BadNets against patches set pixel by pixel, by hand."""

from __future__ import annotations

import pytest
import torch
from trigger_problems import (
    accuracy,
    assert_a_row_does_not_know_its_batch,
    assert_drawn_by_seed_alone,
    assert_rows_are_as_said,
    in_bytes,
    pictures,
    success,
    trained,
    unpoisoned,
)

from buckler.data import digits
from buckler.poisoning.badnets import badnets
from buckler.threat import Share

TEN = Share(0.1)


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
    assert poisoned.survives == (margin > 0)


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


def test_a_row_does_not_know_its_batch() -> None:
    assert_a_row_does_not_know_its_batch(badnets(pictures(), share=TEN).trigger, pictures(5)[0].double())


def test_the_seed_alone_draws() -> None:
    assert_drawn_by_seed_alone(badnets, pictures(), share=TEN)


def test_a_network_learns_it_and_one_that_never_saw_it_does_not() -> None:
    poisoned = badnets(digits(train=True), share=TEN)
    model = trained(poisoned.seen)
    assert success(model, poisoned) > 0.9
    assert accuracy(model) > 0.9
    assert success(unpoisoned(), poisoned) < 0.2


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


def test_bad_data() -> None:
    x, y = pictures()
    with pytest.raises(ValueError, match="at least two classes"):
        badnets((x, torch.zeros_like(y)), share=TEN)
    with pytest.raises(ValueError, match="expected images"):
        badnets((x.flatten(1), y), share=TEN)
