"""FT-SAM against its two passes written out, plain fine-tuning at radius 0, and a planted backdoor."""

from __future__ import annotations

import copy

import backdoored_problems as problems
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from buckler.poisoning.ft_sam import _sharpened, ft_sam
from buckler.train import cosine, fit


@pytest.mark.parametrize("norm", [True, False])
def test_the_gradient_is_that_of_the_second_of_two_passes(norm: bool) -> None:
    x, y = (part[:40] for part in problems.clean_rows())
    model = copy.deepcopy(problems.backdoored(norm)).train()
    loss = nn.CrossEntropyLoss(label_smoothing=0.1)
    away = copy.deepcopy(model)
    loss(away(x), y).backward()
    slopes = [parameter.grad.clone() for parameter in away.parameters()]
    total = sum(float(((p.data * g) ** 2).sum()) for p, g in zip(away.parameters(), slopes, strict=True)) ** 0.5
    for parameter, slope in zip(away.parameters(), slopes, strict=True):
        parameter.data += 2.0 * parameter.data**2 * slope / total
    away.zero_grad()
    loss(away(x), y).backward()

    _sharpened(2.0, 0.1)(model, x, y).mean().backward()
    for (name, one), other in zip(model.named_parameters(), away.parameters(), strict=True):
        assert torch.allclose(one.grad, other.grad, rtol=1e-3, atol=1e-5), name


def test_statistics_are_taken_from_the_first_pass_only() -> None:
    x, y = (part[:40] for part in problems.clean_rows())
    model, once = (copy.deepcopy(problems.backdoored()).train() for _ in range(2))
    _sharpened(2.0, 0.1)(model, x, y)
    once(x)
    for (name, one), other in zip(model.named_buffers(), once.buffers(), strict=True):
        assert torch.equal(one, other), name


def test_without_a_radius_it_is_fine_tuning() -> None:
    model, rows = problems.backdoored(), problems.clean_rows()

    def smoothed(moving: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(moving(x), y, label_smoothing=0.1, reduction="none")

    got = ft_sam(model, rows, radius=0.0, epochs=3, batch=64)
    plain = fit(copy.deepcopy(model), rows, loss=smoothed, epochs=3, batch=64, rate=cosine(0.01))
    for name, value in plain.state_dict().items():
        assert torch.allclose(value, got.state_dict()[name], atol=1e-4), name
    moved = ft_sam(model, rows, epochs=3, batch=64)
    assert not torch.allclose(moved.head.weight, plain.head.weight, atol=1e-3)


def test_a_backdoor_is_forgotten() -> None:
    model = problems.backdoored()
    assert problems.success(model, problems.poison().trigger) > 0.9
    repaired = ft_sam(model, problems.clean_rows(), epochs=25, batch=64, rate=0.05)
    assert problems.success(repaired, problems.poison().trigger) < 0.3
    assert problems.accuracy(repaired) > problems.accuracy(model) - 0.05


def test_a_copy_is_trained() -> None:
    def repair(model: nn.Module) -> nn.Module:
        return ft_sam(model, problems.clean_rows(), epochs=2)

    problems.assert_only_a_copy_changes(repair, problems.backdoored())
    problems.assert_only_a_copy_changes(repair, problems.backdoored(False))


def test_one_class_is_refused() -> None:
    x, y = problems.clean_rows()
    with pytest.raises(ValueError, match="expected rows of at least two classes"):
        ft_sam(problems.backdoored(), (x[y == 3], y[y == 3]))
