"""What is learnt against moved views moves less than what is learnt from views alone."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import nn

from buckler import nets
from buckler.data import Rows
from buckler.embedding import embedded
from buckler.encoders.adversarial_contrastive import adversarial_contrastive
from buckler.encoders.feature_pgd import feature_pgd
from buckler.encoders.simclr import simclr
from buckler.threat import Ball

NET = partial(nets.encoder, width=8, stride=1)


def moved(encoder: nn.Module, rows: Rows) -> float:
    """How far features can be moved, as a share of how far apart rows are."""
    x = rows[0][:40]
    clean = embedded(encoder, x)
    there = embedded(encoder, feature_pgd(encoder, x, ball=Ball("linf", 0.1), groups=0, steps=15, restarts=1))
    return float((there - clean).norm(dim=1).mean() / (clean - clean.roll(1, 0)).norm(dim=1).mean())


def test_features_move_less_than_those_of_an_encoder_that_learnt_without(learnt: Rows, unseen: Rows) -> None:
    """In the mean of two encoders, in as many steps, from the same start: of one alone the ratio is .79 to .88."""
    with_it, without = (
        sum(moved(method(learnt, net=NET, epochs=20, seed=seed), unseen) for seed in (0, 1))
        for method in (adversarial_contrastive, simclr)
    )
    assert with_it < 0.93 * without


def test_labels_are_not_looked_at(learnt: Rows) -> None:
    x = learnt[0][:64]
    one, other = (
        adversarial_contrastive((x, torch.full((64,), label)), net=NET, epochs=1, batch=32).state_dict()
        for label in (0, 7)
    )
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_it_searches(learnt: Rows) -> None:
    with pytest.raises(ValueError, match="at least one step to search"):
        adversarial_contrastive(learnt, net=NET, search=0)
