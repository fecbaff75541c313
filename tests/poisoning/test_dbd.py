"""Decoupling against a naive contrastive loss, and on digits with a patch."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
from cultivate_problems import auroc, check_a_cultivator, few, net, same_weights, shapes
from torch import nn
from torch.nn import functional as F

from buckler.augment import chained
from buckler.nets import SmallCNN
from buckler.poisoning._look import last_linear
from buckler.poisoning.dbd import _cropped, _lit, _nt_xent, dbd

QUICK = {"epochs": (1, 2, 2), "iterations": 4, "batch": (64, 64, 16), "trust": 0.5}


def test_the_contrastive_loss_pair_by_pair() -> None:
    torch.manual_seed(0)
    z = F.normalize(torch.randn(10, 4), dim=1)
    got = _nt_xent(z, 0.3)
    for row in range(5):
        total = 0.0
        for anchor in (row, row + 5):
            near = [math.exp(float(z[anchor] @ z[k]) / 0.3) if k != anchor else 0.0 for k in range(10)]
            total -= math.log(near[(anchor + 5) % 10] / sum(near)) / 2
        assert float(got[row]) == pytest.approx(total, rel=1e-4)


def test_views_keep_range_and_shape_and_can_be_nothing() -> None:
    torch.manual_seed(0)
    x = torch.rand(6, 2, 8, 8)
    assert torch.allclose(_cropped(1.0)(x), x, atol=1e-5)
    assert torch.allclose(_lit(0.0)(x), x, atol=1e-6)
    for view in (_cropped(0.2), _lit(0.4)):
        out = view(x)
        assert out.shape == x.shape
        assert ((out >= 0) & (out <= 1)).all()
        assert not torch.allclose(out, x)
    ramp = torch.linspace(0, 1, 32).expand(200, 1, 32, 32)
    cut = _cropped(0.25)(ramp)[:, 0, 16]
    step = (cut[:, 17] - cut[:, 16]) * 31
    assert step.min() > 0.49, "a quarter of the area is half of the side"
    assert step.max() < 1.01


def test_self_supervision_sees_no_labels() -> None:
    x, y = few(80)
    ways = {"net": net, "epochs": (2, 0, 0), "batch": (32, 32, 32), "trust": 0.5}
    first, other = dbd((x, y), **ways).model, dbd((x, y.flip(0)), **ways).model
    assert same_weights(first, other)
    assert not same_weights(first, dbd((x, y), **{**ways, "epochs": (0, 0, 0)}).model)


def test_the_linear_stage_trains_the_head_alone() -> None:
    ways = {"net": net, "batch": (32, 32, 32), "trust": 0.5}
    before, after = dbd(few(80), epochs=(0, 0, 0), **ways).model, dbd(few(80), epochs=(0, 3, 0), **ways).model
    assert not torch.equal(last_linear(before).weight, last_linear(after).weight)
    for model in (before, after):
        nn.init.zeros_(last_linear(model).weight)
        nn.init.zeros_(last_linear(model).bias)
    assert same_weights(before, after)


def test_what_every_cultivator_keeps_to() -> None:
    done = check_a_cultivator(partial(dbd, **QUICK))
    assert done.dynamics["trusted"].shape == (2, 120)
    assert torch.equal(done.dynamics["trusted"].sum(1), torch.tensor([60.0, 60.0]))
    assert not (done.suspicion.flagged & (done.dynamics["trusted"][-1] > 0)).any()


def test_bad_input() -> None:
    with pytest.raises(ValueError, match="expected a share that is 1 to 79 rows, got 1.0"):
        dbd(few(80), net=net, trust=1.0)
    with pytest.raises(ValueError, match="a model with a linear layer"):
        dbd(few(80), net=lambda: nn.Sequential(nn.Conv2d(1, 10, 8), nn.Flatten()))


def test_self_supervised_features_tell_labels_that_do_not_suit_the_images() -> None:
    poisoned = shapes(0.3)
    ways = {"net": partial(SmallCNN, width=8, side=16), "batch": (128, 64, 16), "rate": (0.05, 1e-2)}
    told, blind = (
        dbd(poisoned.seen, epochs=(epochs, 30, 0), views=chained(_cropped(0.3), _lit(0.4)), **ways) for epochs in (8, 0)
    )
    assert auroc(told.suspicion.score, poisoned.rows) > 0.95
    assert not (poisoned.rows & (told.dynamics["trusted"][0] > 0)).any()
    assert auroc(blind.suspicion.score, poisoned.rows) < 0.5, "a head on features drawn at random learns the patch"
