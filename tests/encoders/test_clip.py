"""CLIP on generated captions: captions, the loss against a naive loop, and names without labels."""

from __future__ import annotations

from functools import partial
from typing import cast

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from buckler import nets
from buckler.data import Rows
from buckler.encoders._pairs import PROMPTS, TEMPLATES, Pair, captions, matched, phrases
from buckler.encoders.clip import clip

NET = partial(nets.encoder, width=8, stride=1)


@pytest.fixture(scope="session")
def pair(learnt: Rows) -> Pair:
    return cast(Pair, clip(learnt, net=NET, epochs=25, seed=0))


def test_every_phrase_is_a_class_of_its_own() -> None:
    """No two classes share a phrase, and no prompt is a caption."""
    known, asked = (
        [{tuple(row) for row in mine} for mine in phrases(12, which).tolist()] for which in (TEMPLATES, PROMPTS)
    )
    assert len(set().union(*known)) == sum(len(mine) for mine in known) == 12 * 2 * len(TEMPLATES)
    assert not set().union(*known) & set().union(*asked)
    assert phrases(12, PROMPTS).max() <= phrases(12).max()


def test_captions_are_of_their_labels_and_drawn_by_the_seed() -> None:
    y = torch.arange(10).repeat(5)
    made, known = captions(y, 10, seed=3), phrases(10)
    assert all(bool((known[label] == row).all(1).any()) for label, row in zip(y.tolist(), made, strict=True))
    assert made.equal(captions(y, 10, seed=3))
    assert not made.equal(captions(y, 10, seed=4))


def test_the_loss_is_that_of_a_naive_loop(pair: Pair, learnt: Rows) -> None:
    x, tokens = learnt[0][:6], captions(learnt[1][:6], 10)
    with torch.no_grad():
        found, seen, told, scale = matched(pair, x, tokens), pair.seen(x), pair.told(tokens), float(pair.scale.exp())
    for i in range(6):
        there = torch.tensor([scale * float(seen[i] @ told[j]) for j in range(6)])
        back = torch.tensor([scale * float(seen[j] @ told[i]) for j in range(6)])
        loss = -(F.log_softmax(there, 0)[i] + F.log_softmax(back, 0)[i]) / 2
        assert float(found[i]) == pytest.approx(float(loss), abs=1e-4)


def test_classes_are_told_by_name_alone(pair: Pair, unseen: Rows) -> None:
    with torch.no_grad():
        right = (pair.named(unseen[0]).argmax(1) == unseen[1]).float().mean()
    assert right > 0.8


def test_an_encoder_that_gives_no_matrix_is_refused(learnt: Rows) -> None:
    with pytest.raises(ValueError, match="matrix"):
        clip(learnt, net=lambda: nn.Conv2d(1, 2, 3), epochs=1)
