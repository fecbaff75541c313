"""FAB against closed forms, projections solved naively, and the reference implementation."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from buckler.evasion._boxed import to_hyperplane
from buckler.evasion.fab import fab
from buckler.nets import LinearModel, SmallCNN
from buckler.target import metered
from buckler.threat import Ball, Norm

NORMS: list[Norm] = ["linf", "l2", "l1"]


@pytest.fixture
def linear() -> tuple[LinearModel, Tensor, Tensor]:
    torch.manual_seed(0)
    weight = torch.randn(3, 20)
    model = LinearModel(weight, -0.5 * weight.sum(1))
    x = torch.rand(12, 20) * 0.1 + 0.45
    return model, x, model(x).argmax(1)


def fooled(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    with torch.no_grad():
        return model(x).argmax(1) != y


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("targets", [0, 9])
def test_on_a_linear_model_it_finds_the_closed_form(linear, norm, targets) -> None:
    model, x, y = linear
    distance = model.distances(x, y, norm)
    assert (distance < 0.4).all(), "an l1 step along one element must fit in the box"
    found = fab(model, x, y, ball=Ball(norm, torch.inf), steps=15, targets=targets)
    assert fooled(model, found, y).all()
    ratio = Ball(norm, 1.0).size(found - x) / distance
    assert (ratio >= 1 - 1e-4).all()
    assert (ratio <= 1.03).all()


@pytest.mark.parametrize("norm", NORMS)
def test_the_verdict_in_a_ball_agrees_with_the_closed_form(linear, norm) -> None:
    model, x, y = linear
    distance = model.distances(x, y, norm)
    for factor, expected in ((0.9, False), (1.2, True)):
        ball = Ball(norm, factor * distance)
        found = fab(model, x, y, ball=ball, steps=15)
        assert ((fooled(model, found, y) & ball.contains(x, found)) == expected).all()


@pytest.mark.parametrize("norm", NORMS)
def test_projections_meet_the_hyperplane_at_the_least_distance_in_the_box(norm) -> None:
    from scipy.optimize import linprog, minimize

    torch.manual_seed(1)
    x, slope = torch.rand(8, 6, dtype=torch.float64), torch.randn(8, 6, dtype=torch.float64)
    slope[0, 2:] = 0
    value = torch.randn(8, dtype=torch.float64)
    change = to_hyperplane(norm, x, slope, value)
    assert (((x + change) >= -1e-12) & ((x + change) <= 1 + 1e-12)).all()
    for row in range(8):
        w, c, start = slope[row].numpy(), float(value[row]), x[row].numpy()
        box = list(zip(-start, 1 - start, strict=True))
        best = linprog([0.0] * 6, A_eq=[w], b_eq=[-c], bounds=box)
        if best.status == 2:  # no point of the box lies on the hyperplane: as near to it as the box lets one
            reach = sum(
                max(w[i] * low, w[i] * high) if c < 0 else min(w[i] * low, w[i] * high)
                for i, (low, high) in enumerate(box)
            )
            assert float(slope[row] @ change[row]) == pytest.approx(reach)
            continue
        assert float(slope[row] @ change[row] + value[row]) == pytest.approx(0, abs=1e-9)
        got = float(Ball(norm, 1.0).size(change[row : row + 1]))
        if norm == "l2":
            rule = {"type": "eq", "fun": lambda d, w=w, c=c: w @ d + c}
            exact = (
                minimize(lambda d: d @ d, best.x, bounds=box, constraints=[rule], options={"ftol": 1e-14}).fun ** 0.5
            )
        elif norm == "linf":  # variables: the change, and a bound t on all its elements
            rows = [[(1.0 if j == i else 0.0) * s for j in range(6)] + [-1.0] for i in range(6) for s in (1, -1)]
            exact = linprog([0.0] * 6 + [1.0], rows, [0.0] * 12, [[*w, 0.0]], [-c], [*box, (0, 1)]).fun
        else:  # variables: the parts above and below zero
            sides = [(0, high) for _, high in box] + [(0, -low) for low, _ in box]
            exact = linprog([1.0] * 12, A_eq=[[*w, *-w]], b_eq=[-c], bounds=sides).fun
        assert got == pytest.approx(exact, rel=1e-4, abs=1e-7)


def test_a_goal_is_reached(linear) -> None:
    model, x, y = linear
    goal = (y + 1) % 3
    found = fab(model, x, y, ball=Ball("l2", torch.inf), goal=goal, steps=30)
    assert (model(found).argmax(1) == goal).all()


def test_a_row_does_not_know_its_batch() -> None:
    torch.manual_seed(1)
    model = SmallCNN(width=4).double().eval()
    x = torch.rand(5, 1, 8, 8, dtype=torch.float64)
    y = model(x).argmax(1)
    for radius in (torch.inf, 0.01):
        ways = {"ball": Ball("linf", radius), "steps": 6, "restarts": 2, "targets": 3}
        together = fab(model, x, y, **ways)
        alone = torch.cat([fab(model, x[i : i + 1], y[i : i + 1], **ways) for i in range(5)])
        assert torch.allclose(together, alone, atol=1e-9)


def test_every_iteration_costs_one_pass_and_settled_rows_cost_none(linear) -> None:
    model, x, y = linear
    with metered(model) as meter:
        fab(model, x, y, ball=Ball("linf", torch.inf), steps=10, targets=1)
    assert meter.forwards <= len(x) * (1 + 11 + 3)
    assert meter.backwards == len(x) * 10
    with metered(model) as meter:
        fab(model, x, y, ball=Ball("linf", 1.0), steps=10)
    assert meter.backwards <= 2 * len(x)


def test_a_row_that_is_wrong_already_is_returned_as_it_is(linear) -> None:
    model, x, y = linear
    assert torch.equal(fab(model, x, (y + 1) % 3, ball=Ball("linf", torch.inf), steps=3), x)


def test_l0_is_refused(linear) -> None:
    model, x, y = linear
    with pytest.raises(ValueError, match="expected a ball in linf, l2 or l1"):
        fab(model, x, y, ball=Ball("l0", 3))


@pytest.mark.parametrize("norm", NORMS)
def test_as_close_as_the_reference(norm) -> None:
    reference = pytest.importorskip("pyautoattack.fab_pt")
    torch.manual_seed(3)
    model = SmallCNN(width=6).eval().requires_grad_(False)
    x = torch.rand(24, 1, 8, 8)
    y = model(x).argmax(1)
    name = {"linf": "Linf", "l2": "L2", "l1": "L1"}[norm]
    peer = reference.FABAttack_PT(model, norm=name, n_restarts=1, n_iter=20, eps=1e9, seed=0, targeted=False)
    theirs = peer.perturb(x, y)
    ours = fab(model, x, y, ball=Ball(norm, torch.inf), steps=20, targets=0)
    size = Ball(norm, 1.0).size
    assert fooled(model, ours, y).sum() >= fooled(model, theirs, y).sum()
    both = fooled(model, ours, y) & fooled(model, theirs, y)
    assert both.any()
    assert size(ours - x)[both].median() <= 1.02 * size(theirs - x)[both].median()
