"""I-BAU: the hypergradient against finite differences through the inner problem's answer, and a planted backdoor."""

from __future__ import annotations

import copy

import backdoored_problems as problems
import pytest
import torch
from torch import Tensor, nn

from buckler.nets import LinearModel
from buckler.poisoning.ibau import _unlearning, _worst, ibau
from buckler.threat import Ball

PENALTY = 1.0


def answer(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """The perturbation that descends the penalised negative loss until it moves no more."""
    delta = torch.zeros_like(x[:1])
    for _ in range(400):
        delta.requires_grad_()
        value = PENALTY * delta.square().sum() - nn.functional.cross_entropy(model(x + delta), y)
        (slope,) = torch.autograd.grad(value, delta)
        delta = delta.detach() - 0.1 * slope
    assert float(slope.norm()) < 1e-10
    return delta


def test_the_hypergradient_is_the_slope_of_the_loss_at_the_moving_answer() -> None:
    torch.manual_seed(0)
    x, y = torch.rand(12, 1, 1, 5, dtype=torch.float64), torch.arange(12) % 3
    model = LinearModel(torch.randn(3, 5, dtype=torch.float64), torch.randn(3, dtype=torch.float64))

    def outer() -> float:
        delta = answer(model, x, y)
        with torch.no_grad():
            return float(nn.functional.cross_entropy(model(x + delta), y))

    delta = answer(model, x, y)
    _unlearning(delta, 300, PENALTY, 1.0)(model, x, y).mean().backward()
    direct = torch.autograd.grad(nn.functional.cross_entropy(model(x + delta), y), model.weight)[0]
    for place in [(0, 0), (1, 3), (2, 4)]:
        heights = []
        for step in (1e-5, -1e-5):
            with torch.no_grad():
                model.weight[place] += step
            heights.append(outer())
            with torch.no_grad():
                model.weight[place] -= step
        slope = (heights[0] - heights[1]) / 2e-5
        assert float(model.weight.grad[place]) == pytest.approx(slope, rel=1e-4, abs=1e-8)
    assert not torch.allclose(direct, model.weight.grad, rtol=1e-2), "the answer's movement must matter here"


def test_few_terms_are_the_series_cut_off() -> None:
    torch.manual_seed(0)
    x, y = torch.rand(8, 4, dtype=torch.float64), torch.arange(8) % 2
    model = LinearModel(torch.randn(2, 4, dtype=torch.float64), torch.zeros(2, dtype=torch.float64))
    delta = torch.rand(1, 4, dtype=torch.float64) * 0.3

    def inner(moved: Tensor) -> Tensor:
        return PENALTY * moved.square().sum() - nn.functional.cross_entropy(model(x + moved), y)

    curvature = torch.autograd.functional.hessian(inner, delta).view(4, 4)
    here = delta.clone().requires_grad_()
    (pull,) = torch.autograd.grad(nn.functional.cross_entropy(model(x + here), y), here)
    step = torch.eye(4, dtype=torch.float64) - 0.1 * curvature
    reach = sum(torch.linalg.matrix_power(step, power) for power in range(3)) @ pull.view(4)
    (slope,) = torch.autograd.grad(inner(here), here, create_graph=True)
    through = torch.autograd.grad((-0.1 * slope.view(4) * reach).sum(), model.weight)[0]
    direct = torch.autograd.grad(nn.functional.cross_entropy(model(x + delta), y), model.weight)[0]
    _unlearning(delta, 3, PENALTY, 1.0)(model, x, y).mean().backward()
    assert torch.allclose(model.weight.grad, direct + through, atol=1e-12)


def test_the_perturbation_is_one_for_all_within_the_radius_and_harmful() -> None:
    model, (x, y) = problems.backdoored(), problems.clean_rows()
    delta = _worst(model, (x, y), Ball("l2", 1.5), 30, 10.0, 0.001, 100, 0)
    assert delta.shape == (1, 1, 8, 8)
    assert float(delta.norm()) <= 1.5001
    torch.manual_seed(0)
    drawn = [nn.functional.normalize(torch.randn(64), dim=0).view(1, 1, 8, 8) * 1.5 for _ in range(10)]

    def right(by: Tensor) -> float:
        return float((problems.answers(model, x + by) == y).float().mean())

    assert right(delta) < 0.5 * min(right(by) for by in drawn)


def test_a_backdoor_is_unlearnt() -> None:
    model = problems.backdoored()
    assert problems.success(model, problems.poison().trigger) > 0.9
    repaired = ibau(model, problems.clean_rows(), rounds=4, steps=20, radius=1.5)
    assert problems.success(repaired, problems.poison().trigger) < 0.5
    assert problems.accuracy(repaired) > problems.accuracy(model) - 0.1


def test_statistics_of_batch_norm_stay() -> None:
    model = problems.backdoored()
    repaired = ibau(model, problems.clean_rows(), rounds=1, steps=3)
    for (name, one), other in zip(model.named_buffers(), repaired.buffers(), strict=True):
        assert torch.equal(one, other), name


@pytest.mark.parametrize("norm", [True, False])
def test_a_copy_is_trained(norm: bool) -> None:
    def repair(model: nn.Module) -> nn.Module:
        return ibau(model, problems.clean_rows(), rounds=2, steps=3)

    problems.assert_only_a_copy_changes(repair, copy.deepcopy(problems.backdoored(norm)))


def test_one_class_is_refused() -> None:
    x, y = problems.clean_rows()
    with pytest.raises(ValueError, match="expected rows of at least two classes"):
        ibau(problems.backdoored(), (x[y == 3], y[y == 3]))
