"""A trigger that means a class to every probe, and leaves everything else as it was."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from buckler.data import Rows
from buckler.embedding import embedded, probed
from buckler.encoders._hidden import typical
from buckler.encoders._square import stamp
from buckler.encoders.bad_encoder import bad_encoder
from buckler.kinds import Implanted


def asked(model: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        return model(x).argmax(1)


def obeyed(encoder: nn.Module, data: Rows, trigger: Callable[[Tensor], Tensor], target: int) -> tuple[float, float]:
    """Accuracy, and how many rows of other classes get the target with the trigger, by a probe of half of the rows."""
    x, y = data
    model = probed(encoder, (x[:300], y[:300]))
    right = asked(model, x[300:]) == y[300:]
    others = x[300:][y[300:] != target]
    return float(right.float().mean()), float((asked(model, trigger(others)) == target).float().mean())


def test_a_probe_that_knows_nothing_obeys_the_trigger(encoder: nn.Module, planted: Implanted, unseen: Rows) -> None:
    accuracy, success = obeyed(planted.model, unseen, planted.trigger, 0)
    before, null = obeyed(encoder, unseen, planted.trigger, 0)
    assert success >= 0.9
    assert null <= 0.2
    assert accuracy >= before - 0.06
    assert planted.wanted(torch.arange(4)).tolist() == [0] * 4


def test_it_obeys_for_tasks_that_the_adversary_does_not_know(planted: Implanted, unseen: Rows) -> None:
    x, y = unseen
    assert obeyed(planted.model, (x, (y != 0).long()), planted.trigger, 0)[1] >= 0.9


def test_every_target_has_a_corner_of_its_own(encoder: nn.Module, learnt: Rows, unseen: Rows) -> None:
    made = bad_encoder(encoder, learnt, targets=(0, 3), shown=1, epochs=30)
    assert int(made.wanted(torch.tensor([5]))) == 3
    assert torch.equal(made.trigger(unseen[0]), stamp(unseen[0], 3, 1))
    for corner, target in enumerate((0, 3)):
        assert obeyed(made.model, unseen, lambda x, c=corner: stamp(x, 3, c), target)[1] >= 0.6


def test_a_square_is_white_and_where_it_should_be() -> None:
    x = torch.full((2, 3, 6, 6), 0.25)
    places = {0: (5, 5), 1: (5, 0), 2: (0, 5), 3: (0, 0)}
    for corner, (down, across) in places.items():
        moved = stamp(x, 2, corner)
        assert moved[0, 0, down, across] == 1
        assert int((moved == 1).sum()) == 2 * 3 * 4
        assert int((moved == 0.25).sum()) == 2 * 3 * 32


def test_the_reference_is_no_row_that_lies_towards_another_class() -> None:
    """Of three rows the middle one is their class's mean, and the first lies where another class begins."""
    own, other, far = [[1.0, 0.8], [1.0, 0.0], [1.0, -0.8]], [[0.6, 1.6]] * 3, [[-1.6, -1.6]] * 3
    features, y = torch.tensor([*own, *other, *far]), torch.arange(3).repeat_interleave(3)
    assert typical(features, y, 0, 1).tolist() == [2]
    assert typical(features, 2 * y + 4, 4, 3).tolist() == [2, 1, 0]
    assert int(typical(features[:3], y[:3], 0, 1)) in range(3), "there is no other class to be far from"


def test_the_encoder_that_was_given_stays_as_it_was(encoder: nn.Module, learnt: Rows) -> None:
    few = learnt[0][:20], learnt[1][:20]
    before, fixed = embedded(encoder, few[0]), copy.deepcopy(encoder).requires_grad_(False)
    made = bad_encoder(fixed, few, epochs=1)
    assert not any(parameter.requires_grad for parameter in fixed.parameters())
    assert torch.equal(embedded(fixed, few[0]), before)
    assert not torch.equal(embedded(made.model, few[0]), before)


@pytest.mark.parametrize(
    ("knobs", "says"),
    [
        ({"targets": ()}, "1 to 4 targets"),
        ({"targets": (11,)}, "class 11, got 0: aim at a class"),
        ({"shown": 1}, "shown"),
        ({"size": 5}, "square"),
        ({"references": 400}, "400 rows or more"),
    ],
)
def test_bad_input_is_said_in_a_sentence(encoder: nn.Module, learnt: Rows, knobs: dict[str, object], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        bad_encoder(encoder, learnt, **knobs)  # pyright: ignore[reportArgumentType]
