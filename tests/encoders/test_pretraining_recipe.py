"""Traits of an encoder's making: told where they show, and by numbers that do not hang on the axes of features."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from buckler.data import Rows
from buckler.encoders._making import WAYS, drawn_ways, made, taught
from buckler.encoders._summaries import VIEWS, questions, summary
from buckler.encoders.pretraining_recipe import pretraining_recipe
from buckler.target import Oracle

IMAGES = 8


def answers(q: Tensor, strong: int, features: int, seed: int) -> Tensor:
    """Features of an encoder that heeds every pixel, or, if `strong`, only how light the halves of an image are."""
    draw = torch.Generator().manual_seed(seed)
    seen = torch.stack([q[..., :4].flatten(1).mean(1), q[..., 4:].flatten(1).mean(1)], 1) if strong else q.flatten(1)
    return seen @ torch.randn(seen.shape[1], features, generator=draw)


def test_what_shows_is_told_whatever_the_width_of_the_features(unseen: Rows) -> None:
    q = questions(unseen[0], IMAGES, 0)
    which = torch.arange(24) % 2
    seen = torch.stack([summary(answers(q, int(kind), 8 + 4 * (seed % 3), seed)) for seed, kind in enumerate(which)])
    learnt = taught(seen, {"crops": which}, len(q))
    for kind in (0, 1):
        oracle = Oracle(lambda x, kind=kind: answers(x, kind, 20, 99), "features")
        scores = pretraining_recipe(oracle, q, metamodel=learnt, traits=("crops",))["crops"]
        assert scores.shape == (2,)
        assert int(scores.argmax()) == kind


def test_a_summary_is_the_same_for_turned_features_where_it_is_of_angles_and_lengths() -> None:
    one = torch.randn((len(VIEWS) + 1) * IMAGES, 6, generator=torch.Generator().manual_seed(0)).double()
    swapped = one[:, torch.randperm(6, generator=torch.Generator().manual_seed(1))]
    assert torch.allclose(summary(one), summary(swapped), atol=1e-6)
    wider = torch.cat([one, torch.zeros(len(one), 3)], 1)
    assert summary(wider).shape == summary(one).shape
    assert not torch.allclose(summary(one), summary(one.roll(IMAGES, 0)), atol=1e-2), "it sees which view is which"


def test_encoders_are_made_as_their_traits_say(learnt: Rows) -> None:
    rows = learnt[0][:70], learnt[1][:70]
    ways = drawn_ways(tuple(WAYS), 12, 0)
    assert all(int(which.bincount().min()) == 12 // len(WAYS[name]) for name, which in ways.items())
    dense, again, residual = (
        made({"network": network}, rows, seed) for network, seed in (("dense", 1), ("dense", 1), ("residual", 1))
    )
    assert torch.equal(dense(rows[0]), again(rows[0]))
    kinds = [{type(part).__name__ for part in one.modules()} for one in (dense, residual)]
    assert "Conv2d" not in kinds[0]
    assert "ResidualBlock" in kinds[1]


def test_other_traits_and_other_questions_are_refused(unseen: Rows) -> None:
    q = questions(unseen[0], IMAGES, 0)
    seen = torch.stack([summary(answers(q, kind, 8, kind)) for kind in (0, 1)])
    learnt = taught(seen, {"crops": torch.arange(2)}, len(q))
    oracle = Oracle(lambda x: x.flatten(1), "features")
    with pytest.raises(ValueError, match="expected traits out of crops"):
        pretraining_recipe(oracle, q, metamodel=learnt)
    with pytest.raises(ValueError, match="expected the 56 questions"):
        pretraining_recipe(oracle, q[:9], metamodel=learnt, traits=("crops",))
    with pytest.raises(ValueError, match="expected at least 4 images"):
        questions(unseen[0][:3], 4, 0)
