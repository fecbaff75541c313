"""Entangled watermarks: the null over keys, the loss against a loop, and models that carry the mark."""

from __future__ import annotations

import math

import pytest
import torch
from owned_worlds import blobs, drawn_by_chance, never_too_small, p_values, small
from torch import nn

from buckler.data import Rows
from buckler.target import Oracle
from buckler.theft.entangled import _soft_nearest_neighbours, entangled
from buckler.train import fit, started


def test_p_values_are_never_too_small_for_a_fixed_model() -> None:
    data = blobs(60)
    suspect = drawn_by_chance(None, 7)
    never_too_small(p_values(lambda s: entangled(data, net=small, epochs=0, patterns=40, seed=s), suspect, 200))


def test_mixture_is_what_a_loop_says() -> None:
    one, other = torch.randn(4, 3), torch.randn(5, 3)
    rows, group = torch.cat([one, other]).double(), [0] * 4 + [1] * 5
    far = [[float((a - b).square().sum()) for b in rows] for a in rows]
    heat = sum(map(sum, far)) / 81
    naive = 0.0
    for i in range(9):
        near = [math.exp(-far[i][j] / heat) * (i != j) for j in range(9)]
        own = sum(value for j, value in enumerate(near) if group[j] == group[i]) / sum(near)
        naive -= math.log(max(own, 0.5)) / 9
    assert float(_soft_nearest_neighbours(one, other)) == pytest.approx(naive, rel=1e-4)


def larger(many: int, seed: int = 0) -> Rows:
    x, y = blobs(many, seed=seed)
    return x.repeat_interleave(2, 2).repeat_interleave(2, 3), y


def wide() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 4))


def test_a_marked_model_is_claimed_and_others_are_not() -> None:
    data = larger(300)
    made = entangled(data, net=wide, epochs=25, batch=32, seed=1)
    assert made.model is not None
    assert made.claim(made.model).p < 1e-3
    assert made.claim(Oracle(made.model, "labels")).p < 0.01
    others = [fit(started(wide, seed), larger(200, seed), epochs=10, seed=seed) for seed in (5, 6)]
    assert min(made.claim(other).p for other in others) > 0.01
    x, y = larger(200, 3)
    assert float((made.model(x).argmax(1) == y).float().mean()) > 0.9
    again = entangled(data, net=wide, epochs=0, seed=1)
    assert again.claim(made.model) == made.claim(made.model)


def test_what_cannot_be_marked_is_said() -> None:
    x, y = blobs(30)
    with pytest.raises(ValueError, match="three classes or more"):
        entangled((x, y % 2), net=small)
    with pytest.raises(ValueError, match="pixels above 0"):
        entangled((x, y), net=small, pixels=0.0)
    with pytest.raises(ValueError, match="source class"):
        entangled((x, y), net=small, source=9)
