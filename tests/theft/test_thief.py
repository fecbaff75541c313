"""A thief whose copy died notices, and begins again."""

from __future__ import annotations

from functools import partial

import torch

from buckler.data import as_tensors, digits
from buckler.nets import SmallCNN
from buckler.theft._thief import said, taught
from buckler.train import fit, started

X, Y = as_tensors(digits(True), 100)
NET = partial(SmallCNN, width=4)


def right(model: torch.nn.Module) -> float:
    return float((said(model, X).argmax(1) == Y).float().mean())


def test_a_copy_that_died_of_its_rate_begins_again() -> None:
    begun = started(NET, 0)
    before = {name: value.clone() for name, value in begun.state_dict().items()}
    dead = fit(started(NET, 0), (X, Y), epochs=30, batch=32, rate=0.5, seed=0)
    assert right(dead) < 0.2
    for answers in (Y, torch.nn.functional.one_hot(Y, 10).float()):
        assert right(taught(begun, (X, answers), epochs=30, batch=32, rate=0.5, seed=0)) > 0.8
    assert all(torch.equal(value, before[name]) for name, value in begun.state_dict().items())


def test_a_copy_that_learns_is_what_one_training_makes_of_it() -> None:
    once = fit(started(NET, 0), (X, Y), epochs=10, batch=32, rate=0.1, seed=0)
    made = taught(started(NET, 0), (X, Y), epochs=10, batch=32, rate=0.1, seed=0)
    assert torch.equal(said(once, X), said(made, X))


def test_answers_of_one_label_are_learnt_once() -> None:
    made = taught(started(NET, 0), (X, torch.full((100,), 3)), epochs=2, batch=32, rate=0.1, seed=0)
    once = fit(started(NET, 0), (X, torch.full((100,), 3)), epochs=2, batch=32, rate=0.1, seed=0)
    assert torch.equal(said(once, X), said(made, X))
