from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from buckler.dice import Dice
from buckler.evasion.pgd import pgd
from buckler.nets import LinearModel
from buckler.target import metered
from buckler.threat import Ball


def _net(classes: int = 4) -> nn.Module:
    """Two layers with weights large enough that every label occurs and the boundary is near."""
    draw = torch.Generator().manual_seed(3)
    net = nn.Sequential(nn.Flatten(), nn.Linear(36, 24), nn.ReLU(), nn.Linear(24, classes, bias=False)).double()
    for layer in (net[1], net[3]):
        layer.weight.data = torch.randn(layer.weight.shape, generator=draw).double() / 2  # pyright: ignore
    net[1].bias.data = -net[1].weight.data.sum(1) / 2  # pyright: ignore
    return net.eval()


def _rows(many: int = 24) -> Tensor:
    return torch.rand(many, 1, 6, 6, generator=torch.Generator().manual_seed(1)).double()


def _naive(model: nn.Module, x: Tensor, y: Tensor, radius: float, steps: int, step: float) -> Tensor:
    """One row at a time, every step, no compaction, no cycles: whether any iterate is fooled."""
    out = []
    for row in range(len(x)):
        clean, label = x[row : row + 1], y[row : row + 1]
        moved = (clean + (Dice(clean, 0).uniform(*x.shape[1:]).to(x) * 2 - 1) * radius).clamp(0, 1)
        ever = False
        for _ in range(steps + 1):
            moved = moved.detach().requires_grad_()
            logits = model(moved)
            ever = ever or bool(logits.argmax(1) != label)
            (grad,) = torch.autograd.grad(F.cross_entropy(logits, label), moved)
            moved = (moved + step * radius * grad.sign()).clamp(clean - radius, clean + radius).clamp(0, 1)
        out.append(ever)
    return torch.tensor(out)


@pytest.mark.parametrize(("radius", "step"), [(0.02, 0.1), (0.08, 0.25), (0.08, 0.5), (0.3, 0.1)])
def test_dropping_rows_changes_no_verdict(radius: float, step: float) -> None:
    model, x = _net(), _rows()
    y = model(x).argmax(1)
    moved = pgd(model, x, y, ball=Ball("linf", radius), steps=30, step=step)
    expected = _naive(model, x, y, radius, 30, step)
    assert torch.equal(model(moved).argmax(1) != y, expected)
    assert int(expected.sum()) > 0


def test_rows_that_walk_in_circles_cost_nothing_more() -> None:
    model, x = _net(2), _rows(8)
    y = model(x).argmax(1)
    ball = Ball("linf", 0.001)
    with metered(model) as short:
        first = pgd(model, x, y, ball=ball, steps=40, step=0.25)
    with metered(model) as long:
        second = pgd(model, x, y, ball=ball, steps=4000, step=0.25)
    assert torch.equal(model(first).argmax(1), model(second).argmax(1))
    assert long.forwards < 2 * short.forwards + 400


def test_a_fooled_row_costs_no_further_step() -> None:
    model = LinearModel(torch.tensor([[0.0] * 9, [1.0] * 9]), torch.tensor([0.0, -4.0]))
    x, y = torch.full((5, 9), 0.4), torch.zeros(5, dtype=torch.long)
    with metered(model) as meter:
        pgd(model, x, y, ball=Ball("linf", 0.5), steps=100, step=0.2)
    assert meter.forwards <= 5 * 6
    with metered(model) as meter:
        pgd(model, x, y, ball=Ball("linf", 0.5), steps=20, step=0.2, stop=False)
    assert meter.forwards > 5 * 6


def test_without_stop_the_highest_loss_is_returned() -> None:
    model, x = _net(), _rows(10)
    y = model(x).argmax(1)
    ball = Ball("l2", 1.0)
    first, last = (pgd(model, x, y, ball=ball, steps=20, stop=stop) for stop in (True, False))
    loss = partial(F.cross_entropy, reduction="none")
    assert (loss(model(last), y) >= loss(model(first), y) - 1e-9).all()
    assert loss(model(last), y).mean() > loss(model(first), y).mean()


def test_l1_passes_over_what_the_box_holds() -> None:
    # the steepest pixel is at its bound already; the next one must be used
    weight = torch.zeros(2, 6)
    weight[1] = torch.tensor([10.0, 3.0, 0.1, 0.0, 0.0, 0.0])
    model = LinearModel(weight, torch.tensor([0.0, -11.0]))
    x, y = torch.tensor([[1.0, 0.1, 0.5, 0.5, 0.5, 0.5]]), torch.tensor([0])
    moved = pgd(model, x, y, ball=Ball("l1", 0.5), steps=10, stop=True)
    assert Ball("l1", 0.5).contains(x, moved).all()
    assert model(moved).argmax(1).item() == 1


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_without_a_limit_nothing_stands(norm: str) -> None:
    model, x = _net(), _rows()
    y = model(x).argmax(1)
    size = {"linf": 1.0, "l2": 6.0, "l1": 36.0}[norm]
    moved = pgd(model, x, y, ball=Ball(norm, size), steps=50)  # pyright: ignore[reportArgumentType]
    assert (model(moved).argmax(1) != y).float().mean() >= 0.95


def test_restarts_and_radii_only_help() -> None:
    model, x = _net(), _rows(40)
    y = model(x).argmax(1)

    def fell(radius: float | Tensor, restarts: int = 1) -> Tensor:
        return model(pgd(model, x, y, ball=Ball("linf", radius), steps=10, restarts=restarts)).argmax(1) != y

    assert (fell(0.05) <= fell(0.05, 4)).all()
    counts = [int(fell(radius).sum()) for radius in (0.0, 0.02, 0.05, 0.1, 0.5)]
    assert counts == sorted(counts)
    assert counts[0] == 0
    mixed = torch.tensor([0.02, 0.1]).double().repeat(20)
    assert torch.equal(fell(mixed)[::2], fell(0.02)[::2])
    assert torch.equal(fell(mixed)[1::2], fell(0.1)[1::2])


def test_it_matches_a_peer_at_the_same_budget() -> None:
    foolbox = pytest.importorskip("foolbox")
    model, x = _net().float(), _rows(60).float()
    y = model(x).argmax(1)
    for radius in (0.03, 0.06, 0.1):
        peer = foolbox.attacks.LinfPGD(rel_stepsize=0.1, steps=25)
        _, _, hits = peer(foolbox.PyTorchModel(model, bounds=(0, 1)), x, y, epsilons=radius)
        moved = pgd(model, x, y, ball=Ball("linf", radius), steps=25, step=0.1)
        assert int((model(moved).argmax(1) != y).sum()) >= int(hits.sum()) - 1


def test_l0_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="l0"):
        pgd(_net(), _rows(1), torch.zeros(1, dtype=torch.long), ball=Ball("l0", 1))


class Crowded(nn.Module):
    """One wrong label wins where the input is small; where it is large many nearly do, and the loss is higher."""

    def forward(self, x: Tensor) -> Tensor:
        t = x.flatten(1)[:, :1]
        one, many = 0.5 - 10 * (t - 0.5).clamp_min(0), (10 * t - 6).clamp_max(-0.01)
        return torch.cat([torch.zeros_like(t), one, many.expand(-1, 40)], 1)


def test_without_stop_an_adversarial_example_is_not_given_up_for_a_higher_loss() -> None:
    x, y = torch.full((1, 1), 0.3), torch.zeros(1, dtype=torch.long)
    top = torch.full((1, 1), 0.6)
    assert F.cross_entropy(Crowded()(top), y) > F.cross_entropy(Crowded()(x + 0.2), y)
    assert Crowded()(top).argmax(1) == y
    assert Crowded()(pgd(Crowded(), x, y, ball=Ball("linf", 0.3), stop=False)).argmax(1) != y
