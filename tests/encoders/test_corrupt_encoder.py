"""CorruptEncoder: where its images hold the object and where the trigger."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from buckler.encoders.corrupt_encoder import corrupt_encoder
from buckler.threat import Share

TILE = torch.tensor([[1.0, 0.0, 1.0], [0.0, 1.0, 0.0], [1.0, 0.0, 1.0]])


def world() -> tuple[Tensor, Tensor]:
    """Class 0 is white, class 1 grey; 8 x 12 pixels."""
    y = torch.arange(40) % 2
    return torch.where(y == 0, 0.9, 0.4)[:, None, None, None].expand(40, 1, 8, 12).clone(), y


def test_object_and_trigger_are_in_different_halves_of_rows_of_other_classes() -> None:
    x, y = world()
    made = corrupt_encoder((x, y), share=Share(0.2))
    assert int(made.rows.sum()) == 8
    assert not bool((y[made.rows] == 0).any())
    assert torch.equal(made.y, y)
    sides = list[bool]()
    for image in made.x[made.rows][:, 0]:
        left = bool((image[:, :6] == 0.9).all())
        sides.append(left)
        assert left or bool((image[:, 6:] == 0.9).all())
        start = 7 if left else 1
        assert torch.equal(image[2:5, start : start + 3], TILE)
        assert int((image == 0.4).sum()) == 48 - 9
    assert sides == [True, False] * 4


def test_the_trigger_is_put_where_the_poison_has_it_and_nowhere_else() -> None:
    x, y = world()
    made = corrupt_encoder((x.transpose(2, 3), y), share=Share(0.2), target=1)
    assert made.trigger is not None
    assert made.wanted is not None
    clean = torch.full((2, 1, 12, 8), 0.5)
    moved = made.trigger(clean)
    assert int((moved != clean).sum()) == 18
    assert torch.equal(moved[1, 0, 7:10, 2:5], TILE)
    assert made.wanted(torch.tensor([0, 1])).tolist() == [1, 1]


def test_what_does_not_fit_is_refused() -> None:
    data = world()
    with pytest.raises(ValueError, match="a trigger in 6 pixels"):
        corrupt_encoder(data, share=Share(0.1), size=7)
    with pytest.raises(ValueError, match="target class of 0 to 1"):
        corrupt_encoder(data, share=Share(0.1), target=2)
    with pytest.raises(ValueError, match="ask for a smaller share"):
        corrupt_encoder(data, share=Share(0.9))
