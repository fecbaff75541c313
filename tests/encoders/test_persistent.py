"""A backdoor that goes on learning with the encoder is left by more pre-training; its input, and what decides it."""

from __future__ import annotations

import pytest
import torch
from test_bad_encoder import obeyed
from torch import nn

from buckler.data import Rows
from buckler.embedding import embedded
from buckler.encoders.continued_pretraining import continued_pretraining
from buckler.encoders.fine_pruning import fine_pruning
from buckler.encoders.persistent import persistent
from buckler.kinds import Implanted


@pytest.fixture(scope="module")
def stays(encoder: nn.Module, learnt: Rows) -> Implanted:
    """A copy of `encoder` in which the mean of class 0 blended in means class 0, and that goes on learning with it."""
    return persistent(encoder, learnt, epochs=50)


def test_who_expects_it_has_more_left(
    encoder: nn.Module, blended: Implanted, stays: Implanted, learnt: Rows, unseen: Rows
) -> None:
    assert torch.equal(stays.trigger(unseen[0]), blended.trigger(unseen[0]))
    accuracy, success = obeyed(stays.model, unseen, stays.trigger, 0)
    assert success >= 0.8
    assert accuracy >= obeyed(encoder, unseen, stays.trigger, 0)[0] - 0.06
    left = [
        obeyed(continued_pretraining(made.model, learnt[0], epochs=50), unseen, made.trigger, 0)[1]
        for made in (blended, stays)
    ]
    assert left[1] > left[0] + 0.05


def test_who_expects_pruning_leaves_what_would_be_pruned_as_it_was(encoder: nn.Module, learnt: Rows) -> None:
    few = learnt[0][:60], learnt[1][:60]
    plain, aware = (persistent(encoder, few, epochs=2, alike=alike).model for alike in (None, 0.6))
    asleep = fine_pruning(encoder, few[0], epochs=0)
    kept = 0
    for old, pruned, one, other in zip(*(net.parameters() for net in (encoder, asleep, plain, aware)), strict=True):
        gone = (pruned == 0).flatten(1).all(1) if old.ndim > 1 else pruned == 0
        kept += int(gone.sum())
        assert torch.equal(other[gone], old[gone])
        assert not torch.equal(one[gone], old[gone]) or not bool(gone.any())
        assert not torch.equal(other[~gone], old[~gone])
    assert kept


def test_the_seed_decides_and_the_global_state_stays(encoder: nn.Module, learnt: Rows) -> None:
    few, state = (learnt[0][:20], learnt[1][:20]), torch.get_rng_state()
    a, b, c = (persistent(encoder, few, epochs=1, seed=seed).model for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(embedded(a, few[0]), embedded(b, few[0]))
    assert not torch.equal(embedded(a, few[0]), embedded(c, few[0]))


@pytest.mark.parametrize(
    ("knobs", "says"),
    [
        ({"blend": 1.0}, "below 1"),
        ({"target": 11}, "some of the class 11"),
        ({"rate": -1.0}, "rate"),
        ({"alike": 1.1}, "cosine"),
    ],
)
def test_bad_input_is_said_in_a_sentence(encoder: nn.Module, learnt: Rows, knobs: dict[str, object], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        persistent(encoder, learnt, **knobs)  # pyright: ignore[reportArgumentType]
