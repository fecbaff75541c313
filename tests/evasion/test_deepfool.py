import math

import pytest
import torch
from torch import Tensor, nn

from buckler.evasion.deepfool import deepfool
from buckler.nets import LinearModel
from buckler.threat import Ball, Norm

NORMS: tuple[Norm, ...] = ("l2", "linf")


@pytest.fixture(scope="module")
def linear() -> tuple[LinearModel, Tensor, Tensor]:
    chance = torch.Generator().manual_seed(0)
    weight = torch.randn(4, 20, generator=chance, dtype=torch.float64)
    model = LinearModel(weight, -weight.sum(1) / 2)
    x = 0.5 + 0.1 * torch.rand(12, 20, generator=chance, dtype=torch.float64)
    return model, x, model(x).argmax(1)


@pytest.fixture(scope="module")
def curved() -> tuple[nn.Module, Tensor, Tensor]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(36, 64), nn.Tanh(), nn.Linear(64, 6)).double().eval()
    x = torch.rand(16, 1, 6, 6, dtype=torch.float64)
    return model, x, model(x).argmax(1)


@pytest.mark.parametrize("norm", NORMS)
def test_lands_on_the_closed_form_distance_plus_the_overshoot(linear: tuple[LinearModel, Tensor, Tensor], norm: Norm):
    model, x, y = linear
    ball = Ball(norm, math.inf)
    adversarial = deepfool(model, x, y, ball=ball, overshoot=0.02)
    assert bool((model(adversarial).argmax(1) != y).all())
    expected = (model.distances(x, y, norm) + 1e-4) * 1.02
    torch.testing.assert_close(ball.size(adversarial - x), expected)


def _one_row(model: nn.Module, x: Tensor, y: int, norm: Norm) -> Tensor:
    """The algorithm as the paper lists it, for one row, with one backward pass per class."""
    total = torch.zeros_like(x)
    moved = x
    for _ in range(50):
        point = moved[None].clone().requires_grad_()
        logits = model(point)[0]
        if int(logits.argmax()) != y:
            break
        steps: list[tuple[float, Tensor]] = []
        for k in range(len(logits)):
            if k != y:
                gap = logits[k] - logits[y]
                slope = torch.autograd.grad(gap, point, retain_graph=True)[0][0]
                if norm == "l2":
                    unit, dual = slope / slope.norm(), slope.norm()
                else:
                    unit, dual = slope.sign(), slope.abs().sum()
                distance = float(gap.detach().abs() / dual)
                steps.append((distance, unit * (distance + 1e-4)))
        total = total + min(steps, key=lambda pair: pair[0])[1]
        moved = (x + 1.02 * total).clamp(0, 1)
    return moved


@pytest.mark.parametrize("norm", NORMS)
def test_equals_the_naive_algorithm_row_by_row(curved: tuple[nn.Module, Tensor, Tensor], norm: Norm):
    model, x, y = curved
    expected = torch.stack([_one_row(model, row, int(label), norm) for row, label in zip(x, y, strict=True)])
    together = deepfool(model, x, y, ball=Ball(norm, math.inf))
    torch.testing.assert_close(together, expected, rtol=0, atol=1e-10)


def test_outputs_are_legal_for_radii_per_row(curved: tuple[nn.Module, Tensor, Tensor]):
    model, x, y = curved
    needed = Ball("l2", 1.0).size(deepfool(model, x, y, ball=Ball("l2", math.inf)) - x)
    factor = torch.where(torch.arange(len(x)) % 2 == 0, 1.01, 0.5)
    ball = Ball("l2", needed * factor)
    adversarial = deepfool(model, x, y, ball=ball)
    assert bool(ball.contains(x, adversarial).all())
    assert bool((model(adversarial).argmax(1) != y)[factor > 1].all())


def test_fewer_classes_are_a_subset_of_the_boundaries(linear: tuple[LinearModel, Tensor, Tensor]):
    model, x, y = linear
    ball = Ball("l2", math.inf)
    two = ball.size(deepfool(model, x, y, ball=ball, classes=2) - x)
    everything = ball.size(deepfool(model, x, y, ball=ball) - x)
    assert bool((two >= everything - 1e-9).all())
    assert bool((two > everything + 1e-3).any())


def test_rows_without_gradients_or_already_wrong_stay(curved: tuple[nn.Module, Tensor, Tensor]):
    model, x, y = curved
    assert torch.equal(deepfool(model, x, (y + 1) % 6, ball=Ball("l2", math.inf)), x)

    class Killer(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return model(x.round()).detach()

    label = model(x.round()).argmax(1)
    assert torch.equal(deepfool(Killer(), x, label, ball=Ball("l2", math.inf)), x)


def test_refuses_a_norm_without_a_dual_step(curved: tuple[nn.Module, Tensor, Tensor]):
    model, x, y = curved
    with pytest.raises(ValueError, match="l2 or linf"):
        deepfool(model, x, y, ball=Ball("l0", 3))


@pytest.mark.parametrize("norm", NORMS)
def test_is_as_near_as_foolbox(curved: tuple[nn.Module, Tensor, Tensor], norm: Norm):
    foolbox = pytest.importorskip("foolbox")
    model, x, y = curved
    model = model.float()
    x = x.float()
    attack = foolbox.attacks.L2DeepFoolAttack() if norm == "l2" else foolbox.attacks.LinfDeepFoolAttack()
    theirs, _, success = attack(foolbox.PyTorchModel(model, bounds=(0, 1), device="cpu"), x, y, epsilons=None)
    ball = Ball(norm, math.inf)
    ours = deepfool(model, x, y, ball=ball)
    model.double()
    assert bool(success.all())
    assert bool((model(ours.double()).argmax(1) != y).all())
    assert ball.size(ours - x).median() <= 1.02 * ball.size(theirs - x).median()
