"""Reconstructive neuron pruning: where unlearning ends, and what becomes of a planted backdoor."""

from __future__ import annotations

import copy
from typing import Any

import backdoored_problems as problems
import pytest
import torch
from torch import nn

from buckler.data import Rows
from buckler.poisoning._masks import Masked, pruned
from buckler.poisoning.rnp import LOOK, _unlearnt, rnp
from buckler.train import constant, fit


def test_unlearning_climbs_and_ends_at_the_first_look_below_the_stop() -> None:
    model, (x, y) = problems.backdoored(), problems.clean_rows()
    steps = -(-len(y) // 32)

    def climb(moving: nn.Module, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return -nn.functional.cross_entropy(moving(x), y, reduction="none")  # its gradient is below the cut at first

    once = _unlearnt(copy.deepcopy(model), (x, y), 0.01, 1.0, 20, 32, 0)
    by_hand = copy.deepcopy(model)
    fit(by_hand, (x, y), loss=climb, epochs=LOOK / steps, batch=32, rate=constant(0.01), seed=0)
    for name, value in by_hand.state_dict().items():
        assert torch.equal(value, once.state_dict()[name]), "a stop of 1 is met at the first look"
    right = []
    for stop in (0.8, 0.2):
        moved = _unlearnt(copy.deepcopy(model), (x, y), 0.01, stop, 20, 32, 0).train()
        right.append(float((problems.answers(moved, x) == y).float().mean()))
    assert 0.95 > right[0] > right[1]
    assert right[1] < 0.4


def test_epochs_bound_unlearning() -> None:
    model, rows = problems.backdoored(), problems.clean_rows()
    short = _unlearnt(copy.deepcopy(model), rows, 1e-7, 0.0, 1, 64, 0)
    assert int(short.stem[1].num_batches_tracked) - int(model.stem[1].num_batches_tracked) in range(5, 9)


def test_masks_alone_bring_back_what_was_unlearnt(monkeypatch: pytest.MonkeyPatch) -> None:
    seen, left = list[Masked](), list[float]()

    def forgotten(*given: Any) -> nn.Module:
        model = _unlearnt(*given)
        left.append(right(model))
        return model

    def right(model: nn.Module) -> float:
        return float((problems.answers(model, x) == y).float().mean())

    def noted(model: nn.Module, masked: Masked, spared: Rows, budget: float) -> nn.Module:
        seen.append(masked)
        return pruned(model, masked, spared, budget)

    monkeypatch.setattr("buckler.poisoning.rnp.pruned", noted)
    monkeypatch.setattr("buckler.poisoning.rnp._unlearnt", forgotten)
    model, (x, y) = problems.backdoored(), problems.clean_rows()
    repaired = rnp(model, (x, y), unlearn_epochs=40, batch=64)
    (masked,) = seen
    assert 0 <= float(masked.mask.detach().min()) < 0.5
    assert float(masked.mask.detach().max()) <= 1
    masked.train()
    assert right(masked) > left[0] + 0.2
    assert problems.accuracy(repaired) > problems.accuracy(model) - 0.1


def test_an_honest_model_keeps_its_accuracy() -> None:
    model = problems.honest()
    assert problems.accuracy(rnp(model, problems.clean_rows(), batch=64)) > problems.accuracy(model) - 0.1


@pytest.mark.parametrize("norm", [True, False])
def test_a_copy_is_pruned(norm: bool) -> None:
    def repair(model: nn.Module) -> nn.Module:
        return rnp(model, problems.clean_rows(), batch=64)

    problems.assert_only_a_copy_changes(repair, problems.backdoored(norm))


def test_bad_input() -> None:
    x, y = problems.clean_rows()
    with pytest.raises(ValueError, match="expected a model with batch norm or convolutions"):
        rnp(nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), (x, y), unlearn_epochs=1)
    with pytest.raises(ValueError, match="expected rows of at least two classes"):
        rnp(problems.backdoored(), (x[y == 3], y[y == 3]))
