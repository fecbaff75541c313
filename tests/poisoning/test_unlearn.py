"""Bounded ascent: it forgets what it is given, stops at chance, and leaves other rows answered."""

from __future__ import annotations

import copy
from functools import partial

import pytest
import torch
from cultivate_problems import net, same_weights

from buckler.data import digits
from buckler.nets import ResNet
from buckler.poisoning._look import logits, losses
from buckler.poisoning._unlearn import ascend
from buckler.train import fit, started


@pytest.fixture(scope="module")
def learnt():
    """A model that knows 40 wrong labels by heart among 400 right ones."""
    x, y = digits(train=True)
    x, y = x[:440], y[:440].clone()
    y[:40] = (y[:40] + 3) % 10
    model = fit(started(partial(ResNet, width=8, blocks=(1, 1)), 0), (x, y), epochs=20, batch=64, rate=0.1)
    return model, (x[:40], y[:40]), (x[40:], y[40:])


def right(model, rows) -> float:
    return float((logits(model, rows).argmax(1) == rows[1]).double().mean())


def test_wrong_labels_are_forgotten_and_right_ones_are_not(learnt) -> None:
    model, wrong, others = copy.deepcopy(learnt[0]), *learnt[1:]
    assert right(model, wrong) > 0.9
    assert ascend(model, wrong, epochs=100, rate=2e-3) is model
    assert right(model, wrong) <= 0.1
    assert right(model, others) > 0.8


def test_it_stops_as_soon_as_rows_are_answered_at_chance(learnt) -> None:
    wrong = learnt[1]
    far = ascend(copy.deepcopy(learnt[0]), wrong, epochs=100, rate=2e-3)
    by_hand, steps = copy.deepcopy(learnt[0]), 0
    while right(by_hand, wrong) > 0.1:
        ascend(by_hand, wrong, epochs=1, rate=2e-3, seed=steps)
        steps += 1
    assert 1 < steps < 100
    assert same_weights(by_hand, far)


def test_the_loss_is_climbed_and_no_epochs_change_nothing(learnt) -> None:
    model, wrong = copy.deepcopy(learnt[0]), learnt[1]
    assert same_weights(ascend(model, wrong, epochs=0, rate=2e-3), learnt[0])
    assert losses(ascend(model, wrong, epochs=1, rate=1e-3), wrong).mean() > losses(learnt[0], wrong).mean()
    assert not model.training


def test_rows_at_chance_already_are_climbed_for_one_epoch_at_most() -> None:
    x, y = digits(train=True)
    rows = (x[y > 0][:50], y[y > 0][:50])
    model = started(net, 0)
    torch.nn.init.zeros_(model.head.weight)
    torch.nn.init.zeros_(model.head.bias)  # it always says 0, which is wrong
    once = ascend(copy.deepcopy(model), rows, epochs=1, rate=1e-4)
    assert same_weights(once, ascend(copy.deepcopy(model), rows, epochs=9, rate=1e-4))
    assert not same_weights(once, model)
