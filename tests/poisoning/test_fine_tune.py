"""Fine-tuning against a loop written out by hand, and its manners."""

from functools import partial

import pytest
import torch
from repair_problems import Flat, check_a_copy_is_repaired, untrained
from torch import nn

from buckler.poisoning.fine_tune import fine_tune


def test_it_is_sgd_with_nesterov_momentum_on_all_rows() -> None:
    torch.manual_seed(0)
    model, x, y = Flat(), torch.rand(20, 1, 8, 8), torch.arange(20) % 10
    got = fine_tune(model, (x, y), epochs=5, batch=20, rate=0.1)  # one batch an epoch, whatever the order
    weight, bias = (p.detach().double().clone() for p in model.parameters())
    moved = [torch.zeros_like(weight), torch.zeros_like(bias)]
    rates = [0.1 * (d / 0.2 if d < 0.2 else (1 - d) / 0.8) for d in (step / 6 for step in range(1, 6))]
    flat = x.flatten(1).double()
    for rate in rates:
        error = (flat @ weight.T + bias).softmax(1) - nn.functional.one_hot(y, 10)
        for i, (p, slope) in enumerate(((weight, error.T @ flat / 20), (bias, error.mean(0)))):
            slope = slope + 5e-4 * p
            moved[i] = 0.9 * moved[i] + slope
            p -= rate * (slope + 0.9 * moved[i])
    assert torch.allclose(got.head.weight.double(), weight, atol=1e-6)
    assert torch.allclose(got.head.bias.double(), bias, atol=1e-6)


def test_it_repairs_a_copy() -> None:
    check_a_copy_is_repaired(partial(fine_tune, epochs=1), *untrained(4))


def test_no_rows_are_refused() -> None:
    with pytest.raises(ValueError, match="expected at least one row"):
        fine_tune(Flat(), (torch.zeros(0, 1, 8, 8), torch.zeros(0, dtype=torch.long)))
