"""Label flips, counted one by one; and rows planted where their loss is known to be high."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from trigger_problems import accuracy, assert_drawn_by_seed_alone, in_bytes, pictures, trained, unpoisoned

from buckler.data import digits
from buckler.poisoning.label_flip import label_flip
from buckler.threat import Share

TEN = Share(0.1)
PLANTED = (torch.arange(200) % 20 == 0) | (torch.arange(200) % 20 == 11)


def linear() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(2, 2))


def halves() -> tuple[torch.Tensor, torch.Tensor]:
    """Two classes left and right of a line; ten rows of each lie on the wrong side."""
    y = torch.arange(200) % 2
    side = torch.where(PLANTED, 1 - y, y).float()
    noise = torch.rand(200, 2, generator=torch.Generator().manual_seed(0)) * 0.2
    return torch.stack([side * 0.8, torch.zeros(200)], 1) + noise, y


@pytest.mark.parametrize("bytes_", [False, True])
def test_nothing_but_labels_is_changed(bytes_) -> None:
    data = in_bytes(pictures()) if bytes_ else pictures()
    poisoned = label_flip(data, share=TEN)
    assert torch.equal(poisoned.x, data[0])
    assert poisoned.x.dtype == data[0].dtype
    assert torch.equal(poisoned.original, data[1])
    assert torch.equal(poisoned.y != data[1], poisoned.rows), "every flipped label is false, and no other"
    assert int(poisoned.rows.sum()) == 6
    assert poisoned.trigger is None
    assert poisoned.wanted is None
    assert poisoned.prey is None


def test_a_random_label_is_any_other_that_occurs_each_as_likely() -> None:
    y = torch.tensor([0, 2, 7]).repeat(2000)
    poisoned = label_flip((torch.zeros(6000, 1), y), share=Share(1.0))
    pairs = {(old, new): 0 for old in (0, 2, 7) for new in (0, 2, 7) if old != new}
    for old, new in zip(y.tolist(), poisoned.y.tolist(), strict=True):
        pairs[old, new] += 1  # a label that does not occur, or the true one, is a KeyError
    assert all(abs(many - 1000) < 150 for many in pairs.values()), "seven deviations"


def test_targeted_flips_go_from_the_source_to_the_target_only() -> None:
    data = pictures()
    poisoned = label_flip(data, share=TEN, goal="targeted", source=3, target=2)
    assert int(poisoned.rows.sum()) == 6
    assert (poisoned.original[poisoned.rows] == 3).all()
    assert (poisoned.y[poisoned.rows] == 2).all()
    assert torch.equal(poisoned.y[~poisoned.rows], data[1][~poisoned.rows])
    assert poisoned.class_rate == pytest.approx(6 / (15 + 6))


@pytest.mark.parametrize("goal", ["random", "targeted"])
def test_rows_are_ordered_by_the_loss_of_a_network_of_its_own(goal) -> None:
    data = halves()
    wrong = PLANTED if goal == "random" else PLANTED & (data[1] == 0)
    share = Share(float(wrong.sum()) / 200)
    knobs = {"share": share, "goal": goal, "source": 0, "target": 1, "net": linear, "epochs": 20, "rate": 0.5}
    assert torch.equal(label_flip(data, first="hardest", **knobs).rows, wrong)
    assert not (label_flip(data, first="easiest", **knobs).rows & PLANTED).any()


def test_the_seed_alone_draws() -> None:
    assert_drawn_by_seed_alone(label_flip, pictures(), share=TEN)
    assert_drawn_by_seed_alone(label_flip, pictures(), share=TEN, goal="targeted")


def test_targeted_flips_do_harm() -> None:
    train = digits(train=True)
    clean, flipped = unpoisoned(), trained(label_flip(train, share=Share(0.08), goal="targeted").seen)
    x, y = digits(train=False)
    source = y == 1
    with torch.no_grad():
        as_target = [float((model(x[source]).argmax(1) == 0).float().mean()) for model in (clean, flipped)]
    assert as_target[0] < 0.05
    assert as_target[1] > 0.5
    assert accuracy(flipped) < accuracy(clean)


@pytest.mark.parametrize(
    ("knobs", "said"),
    [
        ({"goal": "targeted", "source": 0}, "a source class other than the target"),
        ({"goal": "targeted", "target": 4}, "target class of 0 to 3"),
        ({"goal": "targeted", "source": 4}, "rows of class 4, got 0"),
        ({"goal": "targeted", "share": Share(0.3)}, "18 rows of class 1, got 15"),
        ({"first": "hardest"}, "expected a net"),
        ({"first": "easiest", "net": lambda: 1}, "returns an untrained nn.Module"),
    ],
)
def test_bad_knobs(knobs, said) -> None:
    with pytest.raises(ValueError, match=said):
        label_flip(pictures(), **{"share": TEN, **knobs})


def test_one_class_is_bad_data() -> None:
    x, y = pictures()
    with pytest.raises(ValueError, match="at least two classes"):
        label_flip((x, torch.zeros_like(y)), share=TEN)
