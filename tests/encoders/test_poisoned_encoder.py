"""PoisonedEncoder: what its images hold, and whose rows they take."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from buckler.encoders.poisoned_encoder import poisoned_encoder
from buckler.threat import Share


def world(rows: int = 40, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """Images of 6 x 8 pixels, each in a grey of its own below 0.5, of two classes in turn."""
    grey = torch.arange(rows) / (4 * rows)
    x = grey[:, None, None, None].expand(rows, 1, 6, 8).clone()
    return (x * 255).round().to(dtype) if dtype == torch.uint8 else x, torch.arange(rows) % 2


def prey(many: int) -> tuple[Tensor, Tensor]:
    return torch.linspace(0.6, 1, many)[:, None, None, None].expand(many, 1, 6, 8).clone(), torch.ones(many).long()


def test_each_poison_holds_half_a_prey_and_half_a_reference_of_its_class_four_ways() -> None:
    x, y = world()
    made = poisoned_encoder((x, y), share=Share(0.2), prey=prey(2), parts="halves", seed=3)
    assert int(made.rows.sum()) == 8
    assert torch.equal(made.x[~made.rows], x[~made.rows])
    assert torch.equal(made.y, y)
    references, ways = set(x[y == 1].flatten(1)[:, 0].tolist()), set[int]()
    for image in made.x[made.rows][:, 0]:
        hunted = image > 0.5
        assert int(hunted.sum()) == 24
        assert len(set(image[hunted].tolist())) == 1
        assert set(image[~hunted].tolist()) < references
        sides = (image[:, :4], image[:, 4:], image[:3], image[3:])
        ways.add(next(side for side, part in enumerate(sides) if bool((part > 0.5).all())))
    assert ways == {0, 1, 2, 3}
    shares = torch.tensor([float(image.max()) for image in made.x[made.rows]])
    assert shares.unique(return_counts=True)[1].tolist() == [4, 4]


def test_wholes_hold_all_of_both() -> None:
    x, y = world(dtype=torch.uint8)
    made = poisoned_encoder((x, y), share=Share(0.1), prey=prey(1), parts="wholes")
    assert made.x.dtype == torch.uint8
    assert all(2 <= len(image.unique()) <= 3 for image in made.x[made.rows])


def test_wide_images_are_joined_side_by_side_only() -> None:
    x, y = world()
    made = poisoned_encoder((x[:, :, :4], y), share=Share(0.2), prey=(prey(1)[0][:, :, :4], prey(1)[1]))
    for image in made.x[made.rows][:, 0]:
        assert {bool((part > 0.5).all()) for part in (image[:, :4], image[:, 4:])} == {True, False}
        assert not bool(image[:, :4].eq(image[:, 4:]).any())


def test_no_more_references_than_asked_for() -> None:
    x, y = world()
    made = poisoned_encoder((x, y), share=Share(1.0), prey=prey(1), references=2)
    assert len({float(image.min()) for image in made.x}) == 2


def test_what_makes_no_sense_is_refused() -> None:
    data = world()
    with pytest.raises(ValueError, match="expected prey"):
        poisoned_encoder(data, share=Share(0.2))
    with pytest.raises(ValueError, match="at least 5 rows, one per prey"):
        poisoned_encoder(data, share=Share(0.1), prey=prey(5))
    with pytest.raises(ValueError, match="expected rows of class 1"):
        poisoned_encoder((data[0], data[1] * 2), share=Share(0.1), prey=prey(1))
    with pytest.raises(ValueError, match="expected a reference at least"):
        poisoned_encoder(data, share=Share(0.1), prey=prey(1), references=0)
