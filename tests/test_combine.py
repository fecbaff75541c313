"""Combinators: who gets which rows, what holds what, and that what comes out can be inspected."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from buckler.combine import _Confirmed, on_forms, quickened, restarted, targeted, worst_of
from buckler.kinds import Perturbed
from buckler.method import describe
from buckler.nets import LinearModel, SmallCNN
from buckler.target import LabelOracle, Oracle, ScoreOracle
from buckler.threat import Ball

BALL = Ball("linf", 0.5)
MODEL = LinearModel(torch.tensor([[1.0], [-1.0], [0.0]]), torch.tensor([0.0, 1.0, 0.2]))
"""One element: label 0 above 0.5, label 1 below; label 2 nowhere."""


def shift(model: nn.Module, x: Tensor, y: Tensor, *, ball: Ball, by: float = 0.0, seen: list[int]) -> Perturbed:
    """Subtract `by`, and note how many rows there were."""
    seen.append(len(x))
    return (x - by).clamp(0, 1)


def dice(model: nn.Module, x: Tensor, y: Tensor, *, ball: Ball, seed: int = 0) -> Perturbed:
    """Right with one seed only."""
    return (x - 0.4).clamp(0, 1) if seed == 12 else x


def aimed(model: nn.Module, x: Tensor, y: Tensor, *, ball: Ball, goal: Tensor | int | None = None) -> Perturbed:
    """Go where the goal is, if it is label 1."""
    assert isinstance(goal, Tensor)
    return torch.where(goal[:, None] == 1, (x - 0.4).clamp(0, 1), x)


def scores(oracle: ScoreOracle, x: Tensor, y: Tensor, *, ball: Ball) -> Perturbed:
    assert isinstance(oracle, Oracle)
    assert oracle(x).shape == (len(x), 3)
    return x


def labels(oracle: LabelOracle, x: Tensor, y: Tensor, *, ball: Ball) -> Perturbed:
    assert oracle(x).shape == (len(x),)
    return x


def test_only_survivors_are_handed_on() -> None:
    x, y = torch.tensor([[0.6], [0.8], [0.95], [0.2]]), torch.tensor([0, 0, 0, 0])
    seen: list[int] = []
    method = worst_of([partial(shift, by=by, seen=seen) for by in (0.2, 0.4, 0.49)])
    found = method(MODEL, x, y, ball=BALL)
    assert seen == [3, 2, 1]  # the last row is wrong from the start
    assert (MODEL(found).argmax(1) != y).all()
    assert torch.equal(found[3], x[3])


def test_a_point_outside_the_ball_is_no_success() -> None:
    seen: list[int] = []
    x, y = torch.tensor([[0.9]]), torch.tensor([0])
    found = worst_of([partial(shift, by=0.8, seen=seen)] * 2)(MODEL, x, y, ball=BALL)
    assert seen == [1, 1]
    assert torch.equal(found, x)


def test_radii_follow_their_rows() -> None:
    seen: list[int] = []
    x, y = torch.tensor([[0.8], [0.8]]), torch.tensor([0, 0])
    method = worst_of([partial(shift, by=0.4, seen=seen)] * 2)
    found = method(MODEL, x, y, ball=Ball("linf", torch.tensor([0.1, 0.5])))
    assert seen == [2, 1]
    assert (MODEL(found).argmax(1) != y).tolist() == [False, True]


def test_each_method_holds_what_it_asks_for() -> None:
    x, y = torch.tensor([[0.9]]), torch.tensor([0])
    seen: list[int] = []
    worst_of([scores, labels, partial(shift, seen=seen)])(MODEL, x, y, ball=BALL)
    assert seen == [1]
    with pytest.raises(ValueError, match="needs the model itself"):
        worst_of([partial(shift, seen=seen)])(Oracle(MODEL), x, y, ball=BALL)


def test_restarts_try_other_seeds() -> None:
    x, y = torch.tensor([[0.8]]), torch.tensor([0])
    assert torch.equal(restarted(dice, 4)(MODEL, x, y, ball=BALL, seed=2), x)  # seeds 8 to 11
    assert (MODEL(restarted(dice, 4)(MODEL, x, y, ball=BALL, seed=3)).argmax(1) == 1).all()  # seeds 12 to 15
    with pytest.raises(ValueError, match="expected a method with a seed"):
        restarted(scores, 3)


def test_goals_are_tried_one_by_one() -> None:
    x, y = torch.tensor([[0.8], [0.95]]), torch.tensor([0, 0])
    found = targeted(aimed)(MODEL, x, y, ball=BALL)
    assert (MODEL(found).argmax(1) == 1).tolist() == [True, False]
    with pytest.raises(ValueError, match="takes a goal"):
        targeted(scores)


def test_a_goal_goes_through_or_is_refused() -> None:
    x, y = torch.tensor([[0.8]]), torch.tensor([0])
    found = worst_of([aimed])(MODEL, x, y, ball=BALL, goal=torch.tensor([1]))
    assert MODEL(found).argmax(1).item() == 1
    with pytest.raises(ValueError, match="methods that take a goal"):
        worst_of([scores])(MODEL, x, y, ball=BALL, goal=1)


def test_what_is_combined_can_be_inspected_and_combined_again() -> None:
    seen: list[int] = []
    method = worst_of([restarted(dice, 2), partial(shift, by=0.4, seen=seen)])
    described = describe(method)
    assert described.kind == "evade"
    assert described.holds == "model"
    assert "dice" in str(described.params["methods"])
    assert "'by': 0.4" in str(described.params["methods"])
    x, y = torch.tensor([[0.8]]), torch.tensor([0])
    assert (worst_of([method])(MODEL, x, y, ball=BALL) < 0.5).all()
    with pytest.raises(ValueError, match="at least one"):
        worst_of([])


def shy(
    model: nn.Module, x: Tensor, y: Tensor, *, ball: Ball, honest: nn.Module, asked: list[nn.Module], seed: int = 0
) -> Perturbed:
    """Moves only what the honest model is behind."""
    asked.append(model)
    return torch.stack([x[:, 0] - 0.29, x[:, 1]], 1) if model is honest else x


def test_a_claim_that_fails_on_the_model_is_taken_up_again_in_the_exact_form() -> None:
    """The fast form calls every input wrong; only the exact form can tell where to go."""
    model = LinearModel(torch.tensor([[1.0, 0.0], [-1.0, 0.0]]), torch.tensor([-0.4, 0.4]))
    fast = LinearModel(torch.tensor([[1.0, 0.0], [-1.0, 0.0]]), torch.tensor([-9.0, 9.0]))
    fast.register_parameter("spare", nn.Parameter(torch.zeros(1, dtype=torch.bfloat16)))
    x, y, ball = torch.tensor([[0.6, 0.5], [0.9, 0.5]]), torch.tensor([0, 0]), Ball("linf", 0.3)
    asked: list[nn.Module] = []

    method = partial(shy, honest=model, asked=asked)
    found = on_forms(model, x, y, ball=ball, method=method, fast=fast, exact=model)
    assert asked == [fast, model]
    assert (model(found).argmax(1) != y).tolist() == [True, False]


def test_the_fast_form_costs_no_row() -> None:
    def climb(model: nn.Module, x: Tensor, y: Tensor, *, ball: Ball) -> Perturbed:
        """Three steps along the gradient's sign."""
        moved = x
        for _ in range(3):
            moved = moved.detach().requires_grad_()
            (grad,) = torch.autograd.grad(F.cross_entropy(model(moved), y, reduction="sum"), moved)
            moved = ball.clip(x, moved.detach() + 0.06 * grad.sign())
        return moved

    torch.manual_seed(4)
    model = SmallCNN(width=6).eval().requires_grad_(False)
    x = torch.rand(32, 1, 8, 8)
    y = model(x).argmax(1)
    ball = Ball("linf", 0.16)
    plain, quick = (model(f(model, x, y, ball=ball)).argmax(1) != y for f in (climb, quickened(climb)))
    assert 0 < plain.sum() < 32
    assert (quick >= plain).all()


def test_close_answers_are_given_by_the_exact_form() -> None:
    exact = LinearModel(torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 0.0]]), torch.tensor([-0.5, 0.5, -9.0]))
    fast = LinearModel(torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 0.0]]), torch.tensor([-0.52, 0.52, -9.0]))
    x = torch.tensor([[0.51, 0.0], [0.99, 0.0]])
    assert (fast(x).argmax(1) == torch.tensor([1, 0])).all()
    both = _Confirmed(fast, exact)(x)
    assert torch.equal(both[0], exact(x)[0])
    assert torch.equal(both[1], fast(x)[1])
