import pytest
import torch
from norm_problems import digits, linear
from scipy.optimize import minimize

from buckler.evasion._search import ascend
from buckler.evasion.fgsm import fgsm
from buckler.nets import LinearModel
from buckler.threat import Ball


def test_linf_is_the_step_of_the_paper():
    model, x, y = digits()
    at = x.clone().requires_grad_()
    (grad,) = torch.autograd.grad(ascend("ce", model(at), y, None).sum(), at)
    expected = (x + 0.1 * grad.sign()).clamp(0, 1)
    assert torch.allclose(fgsm(model, x, y, ball=Ball("linf", 0.1), stop=False), expected, atol=1e-6)


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_two_classes_fall_exactly_at_their_distance(norm):
    model, x, y = linear(classes=2)
    distance = model.distances(x, y, norm)
    for share, falls in ((1.01, True), (0.99, False)):
        moved = fgsm(model, x, y, ball=Ball(norm, share * distance))
        assert bool(((model(moved).argmax(1) != y) == falls).all())


@pytest.mark.parametrize("norm", ["l2", "l1"])
def test_no_step_in_ball_and_box_gains_more(norm):
    draw = torch.Generator().manual_seed(1)
    slope, x = torch.randn(6, generator=draw).double(), torch.rand(5, 6, generator=draw).double()
    slope[2] = 0
    model = LinearModel(torch.stack((-slope, slope)), torch.zeros(2).double())
    label = torch.zeros(5, dtype=torch.long)
    for radius in (0.05, 0.4, 1.0, 9.0):
        ball = Ball(norm, radius)
        moved = fgsm(model, x, label, ball=ball, stop=False)
        assert ball.contains(x, moved).all()
        for row, start in zip(moved - x, x, strict=True):
            order = 2 if norm == "l2" else 1
            solved = minimize(
                lambda both: -slope.numpy() @ (both[:6] - both[6:]),
                torch.full((12,), 1e-3).numpy(),
                bounds=[(0, float(1 - s)) for s in start] + [(0, float(s)) for s in start],
                constraints={
                    "type": "ineq",
                    "fun": lambda b, o=order, r=radius: r**o - (b[:6] ** o + b[6:] ** o).sum(),
                },
                method="SLSQP",
            )
            assert float(slope @ row) >= -solved.fun - 1e-4


def test_a_row_that_is_wrong_already_stays_unless_told_otherwise():
    model, x, y = linear()
    wrong = (y + 1) % 4
    assert torch.equal(fgsm(model, x, wrong, ball=Ball("linf", 0.1)), x)
    assert not torch.equal(fgsm(model, x, wrong, ball=Ball("linf", 0.1), stop=False), x)


def test_targeted_goes_to_the_target_and_radii_are_per_row():
    model, x, y = linear(classes=2)
    radii = torch.linspace(0, 0.4, len(x))
    moved = fgsm(model, x, y, ball=Ball("linf", radii), goal=1 - y)
    assert torch.allclose((moved - x).flatten(1).abs().amax(1), radii, atol=1e-6)
    assert bool((model(moved).argmax(1)[radii > 0.35] == (1 - y)[radii > 0.35]).all())


def test_infinite_radius_no_rows_no_gradient_and_l0():
    model, x, y = linear(classes=2)
    for norm in ("linf", "l2", "l1"):
        moved = fgsm(model, x, y, ball=Ball(norm, float("inf")))
        assert bool((model(moved).argmax(1) != y).all())
        assert bool(((moved == 0) | (moved == 1)).all())
        assert fgsm(model, x[:0], y[:0], ball=Ball(norm, 0.1)).shape == x[:0].shape
        flat = LinearModel(torch.zeros(2, 25), torch.tensor([1.0, 0.0]))
        assert torch.equal(fgsm(flat, x, torch.zeros_like(y), ball=Ball(norm, 0.1)), x)
    with pytest.raises(ValueError, match="l0"):
        fgsm(model, x, y, ball=Ball("l0", 3))
