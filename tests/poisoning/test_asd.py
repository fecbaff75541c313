"""Adaptive splitting: which rows are trusted when, and on digits with a patch."""

from __future__ import annotations

import copy
from functools import partial

import pytest
import torch
from backdoored_problems import answers, poison, success
from cultivate_problems import auroc, check_a_cultivator, few, net, same_weights

from buckler.augment import shifted
from buckler.data import digits
from buckler.nets import SmallCNN
from buckler.poisoning._look import losses
from buckler.poisoning._split import Splits, lowest
from buckler.poisoning.asd import _like, _middling, _soon, asd
from buckler.train import fit, started

QUICK = {"epochs": (1, 4, 1, 1), "grow": (2, 3), "seeds": 2, "iterations": 3, "batch": (16, 32)}


def per_class(chosen, y):
    return torch.bincount(y[chosen], minlength=10)


def test_trust_grows_class_by_class_then_is_half_of_all() -> None:
    x, y = few(200)
    trusted = asd((x, y), net=net, **QUICK).dynamics["trusted"] > 0
    assert trusted.shape == (6, 200)
    for epoch, many in enumerate((2, 2, 5, 5)):
        assert (per_class(trusted[epoch], y) == many).all()
        assert (trusted[epoch] | ~trusted[0]).all(), "the first ones stay"
    assert trusted.sum(1).tolist()[4:] == [100, 100]


def test_clean_rows_are_trusted_and_not_scored() -> None:
    x, y = few(200)
    clean = (x[:100], y[:100])
    done = asd((x[100:], y[100:]), net=net, clean=clean, **QUICK)
    assert done.suspicion.score.shape == (100,)
    assert done.dynamics["trusted"].shape == (6, 100)
    assert not done.dynamics["trusted"][:2].any(), "at first nothing else is"


def test_clean_rows_are_held_like_the_data() -> None:
    x, y = few(100)
    pixels = (x * 255).round().to(torch.uint8)
    assert torch.equal(_like((x, y), pixels, 10)[0], pixels)
    assert torch.allclose(_like((pixels, y), x, 10)[0], pixels.float() / 255)
    with pytest.raises(ValueError, match="clean rows of every class, got none of class 3"):
        _like((x[y != 3], y[y != 3]), x, 10)
    with pytest.raises(ValueError, match="clean rows of shape"):
        _like((x[:, :, 1:], y), x, 10)


def test_first_rows_are_neither_easy_nor_hard() -> None:
    x, y = few(400)
    chosen = _middling((x, y), net, 3, 0, 64, 5)
    assert (per_class(chosen, y) == 3).all()
    loss = losses(started(net, 5), (x, y))
    for label in range(10):
        own = loss[y == label]
        for value in loss[chosen & (y == label)]:
            assert 0.5 <= float((own < value).float().mean()) <= 0.76
    everything = _middling((x, y), net, int(torch.bincount(y).min()), 0, 64, 5)
    assert (per_class(everything, y) == torch.bincount(y).min()).all()


def test_looking_ahead_leaves_the_model_and_moves_the_later_half() -> None:
    x, y = few(100)
    model = started(net, 0)
    before = copy.deepcopy(model)
    ahead = _soon(model, (x, y), 32, 0.015, 0)
    assert same_weights(model, before)
    assert all(parameter.requires_grad for parameter in model.parameters())
    now = _soon(model, (x, y), 32, 0.0, 0)
    assert ahead.mean() < now.mean()


def test_rows_that_are_learnt_in_no_time_lose_trust() -> None:
    """A model that knows clean digits, shown poisoned ones: their labels are all that an epoch has to learn."""
    poisoned = poison()
    x, y = poisoned.seen
    model = fit(started(net, 0), (x[~poisoned.rows], y[~poisoned.rows]), epochs=6, batch=64, rate=0.05)
    score = Splits(model, (x, y)).disagreement()
    gap = score - _soon(model, (x, y), 64, 0.005, 0)
    assert auroc(gap, poisoned.rows) > 0.85
    assert (lowest(gap, 0.5) & poisoned.rows).sum() <= 6, "of 120, where 60 would be chance"


def test_what_every_cultivator_keeps_to() -> None:
    check_a_cultivator(partial(asd, **QUICK), rows=150)


def test_bad_input() -> None:
    with pytest.raises(ValueError, match="expected 1 to .* seeds, as many as the smallest class has rows, got 90"):
        asd(few(100), net=net, seeds=90)
    with pytest.raises(ValueError, match="at least one epoch of splits"):
        asd(few(100), net=net, epochs=(1, 0, 0, 0))
    with pytest.raises(ValueError, match="expected a share that is 1 to 99 rows"):
        asd(few(100), net=net, trust=0.0)


@pytest.mark.parametrize("given", [True, False])
def test_a_patch_is_not_learnt(given) -> None:
    poisoned = poison()
    x, y = digits(train=False)
    clean = (x[-150:], y[-150:]) if given else None  # the other 450 are tested
    done = asd(
        poisoned.seen, net=partial(SmallCNN, width=16), clean=clean, epochs=(6, 6, 3, 1), grow=(1, 10),
        iterations=40, batch=(32, 64), augment=shifted(1),
    )  # fmt: skip
    assert success(done.model, poisoned.trigger) < 0.3, "undefended it is 1"
    assert (answers(done.model, x[:450]) == y[:450]).float().mean() > 0.6
