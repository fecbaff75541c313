"""Auto-PGD against closed forms, a naive l1 projection, the reference implementation, and its own rules."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from buckler.evasion._boxed import bounded, l1_in_box
from buckler.evasion.apgd import _checkpoints, apgd
from buckler.nets import LinearModel, SmallCNN
from buckler.threat import Ball, Norm

NORMS: list[Norm] = ["linf", "l2", "l1"]


@pytest.fixture
def linear() -> tuple[LinearModel, Tensor, Tensor]:
    """A three-class linear model and rows so far from the box's faces that the closed form holds."""
    torch.manual_seed(0)
    weight = torch.randn(3, 20)
    model = LinearModel(weight, -0.5 * weight.sum(1))
    x = torch.rand(12, 20) * 0.1 + 0.45
    return model, x, model(x).argmax(1)


def fooled(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    with torch.no_grad():
        return model(x).argmax(1) != y


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("objective", ["ce", "dlr"])
def test_it_succeeds_just_beyond_the_closest_boundary_and_never_before(linear, norm, objective) -> None:
    model, x, y = linear
    targets = 2
    if objective == "ce":  # raising the loss between three classes need not lead to the closest one
        model, targets = LinearModel(model.weight[:2].detach(), model.bias[:2].detach()), 0
        y = model(x).argmax(1)
    distance = model.distances(x, y, norm)
    for factor, expected in ((0.9, False), (1.3, True)):
        ball = Ball(norm, factor * distance)
        found = apgd(model, x, y, ball=ball, steps=60, objective=objective, targets=targets)
        assert ball.contains(x, found).all()
        assert (fooled(model, found, y) == expected).all(), f"{norm} at {factor} of the distance"


def test_a_goal_is_reached_and_excludes_targets(linear) -> None:
    model, x, y = linear
    goal = (y + 1) % 3
    found = apgd(model, x, y, ball=Ball("l2", 10.0), goal=goal, steps=30)
    assert (model(found).argmax(1) == goal).all()
    with pytest.raises(ValueError, match="targets or goal, got both"):
        apgd(model, x, y, ball=Ball("l2", 1.0), goal=1, targets=2)


def test_checkpoints_are_those_of_the_paper() -> None:
    # p = 0, .22, .41, .57, .70, .80, .87, .93, .99: the figures behind the paper's section 3.2 for 100 iterations
    assert sorted(c for c in _checkpoints(100) if c < 100) == [22, 41, 57, 70, 80, 87, 93, 99]


@pytest.mark.parametrize("targets", [0, 3])
@pytest.mark.parametrize("norm", NORMS)
def test_a_row_does_not_know_its_batch(norm, targets) -> None:
    torch.manual_seed(1)
    model = SmallCNN(width=4).double().eval()
    x = torch.rand(6, 1, 8, 8, dtype=torch.float64)
    y = model(x).argmax(1)
    ball = Ball(norm, {"linf": 0.02, "l2": 0.2, "l1": 1.0}[norm])
    ways = {"ball": ball, "steps": 12, "targets": targets, "objective": "dlr", "restarts": 2}
    together = apgd(model, x, y, **ways)
    alone = torch.cat([apgd(model, x[i : i + 1], y[i : i + 1], **ways) for i in range(6)])
    assert torch.allclose(together, alone, atol=1e-9)


def test_dlr_falls_back_to_the_margin_where_classes_are_too_few() -> None:
    model = LinearModel(torch.tensor([[1.0, 0.0], [-1.0, 0.0]]), torch.tensor([-0.4, 0.4]))
    x, y = torch.tensor([[0.6, 0.5]]), torch.tensor([0])
    for targets in (0, 9):
        found = apgd(model, x, y, ball=Ball("linf", 0.3), objective="dlr", targets=targets, steps=5)
        assert fooled(model, found, y).all()


def test_without_stop_every_row_goes_on_to_its_highest_loss() -> None:
    torch.manual_seed(0)
    model = SmallCNN(width=4).eval()
    x = torch.rand(8, 1, 8, 8)
    y = model(x).argmin(1)  # wrong from the start, so that the first point met is a success
    loss = nn.CrossEntropyLoss(reduction="none")
    ball = Ball("linf", 0.2)
    early, late = (loss(model(apgd(model, x, y, ball=ball, steps=20, stop=stop)), y) for stop in (True, False))
    assert (late > early).all()


def test_averaging_over_draws_finds_the_direction_that_one_draw_hides() -> None:
    class Noisy(nn.Module):
        """The sign of the slope is drawn at every pass, and is right three times out of four."""

        def __init__(self) -> None:
            super().__init__()
            self.generator = torch.Generator().manual_seed(0)

        def forward(self, x: Tensor) -> Tensor:
            sign = 1.0 if torch.rand((), generator=self.generator) < 0.75 else -1.0
            total = x.sum(1) - x.shape[1] / 2
            return torch.stack([total.detach() + sign * (total - total.detach()), torch.zeros_like(total)], 1)

    x, y = torch.full((1, 400), 0.55), torch.tensor([0])
    ball = Ball("linf", 0.06)
    found = apgd(Noisy(), x, y, ball=ball, objective="margin", steps=10, draws=40)
    assert fooled(Noisy(), found, y).all()


def test_the_l1_projection_is_the_closest_point_of_ball_and_box() -> None:
    torch.manual_seed(0)
    x, delta = torch.rand(6, 9, dtype=torch.float64), torch.randn(6, 9, dtype=torch.float64)
    radius = torch.tensor([[0.0], [0.3], [1.0], [2.0], [5.0], [100.0]], dtype=torch.float64)
    got = l1_in_box(x, delta, radius)
    low, high = torch.zeros(6, 1, dtype=torch.float64), torch.full((6, 1), 10.0, dtype=torch.float64)
    room = torch.where(delta > 0, 1 - x, x)
    for _ in range(200):  # bisection on the one unknown of the optimality conditions
        middle = (low + high) / 2
        long = torch.minimum((delta.abs() - middle).clamp_min(0), room).sum(1, keepdim=True) > radius
        low, high = torch.where(long, middle, low), torch.where(long, high, middle)
    assert torch.allclose(got, delta.sign() * torch.minimum((delta.abs() - high).clamp_min(0), room), atol=1e-9)


@pytest.mark.parametrize("norm", NORMS)
def test_an_infinite_radius_is_the_whole_box(norm, linear) -> None:
    model, x, y = linear
    found = apgd(model, x, y, ball=Ball(norm, torch.inf), steps=20)
    assert found.isfinite().all()
    assert fooled(model, found, y).all()
    assert bounded(Ball(norm, torch.inf), x).radius.isfinite().all()


def test_l0_is_refused(linear) -> None:
    model, x, y = linear
    with pytest.raises(ValueError, match="expected a ball in linf, l2 or l1"):
        apgd(model, x, y, ball=Ball("l0", 3))


@pytest.mark.parametrize("norm", NORMS)
def test_no_weaker_than_the_reference(norm) -> None:
    reference = pytest.importorskip("pyautoattack.autopgd_base")
    torch.manual_seed(3)
    model = SmallCNN(width=6).eval().requires_grad_(False)
    x = torch.rand(24, 1, 8, 8)
    y = model(x).argmax(1)
    radius = {"linf": 0.16, "l2": 0.8, "l1": 4.0}[norm]
    name = {"linf": "Linf", "l2": "L2", "l1": "L1"}[norm]
    peer = reference.APGDAttack(model, n_iter=30, norm=name, eps=radius, seed=0, use_largereps=norm == "l1")
    theirs = ours = 0
    for seed in range(3):
        peer.seed = seed
        theirs += int(fooled(model, peer.perturb(x, y), y).sum())
        ours += int(fooled(model, apgd(model, x, y, ball=Ball(norm, radius), steps=30, seed=seed), y).sum())
    assert 0 < theirs < 3 * len(x), "the radius must separate rows, or this compares nothing"
    assert ours >= 0.8 * theirs  # starts are drawn at random; a weaker attack loses far more
