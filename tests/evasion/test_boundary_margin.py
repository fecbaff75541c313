import pytest
import torch
from torch import nn

from buckler.evasion.boundary_margin import boundary_margin
from buckler.evasion.ibp import ibp
from buckler.evasion.pgd import pgd
from buckler.nets import LinearModel, SmallCNN
from buckler.threat import Ball

NORMS = ["linf", "l2", "l1"]


def linear(classes=5, rows=20, size=16):
    torch.manual_seed(1)
    model = LinearModel(torch.randn(classes, size), 0.1 * torch.randn(classes))
    x = 0.4 + 0.2 * torch.rand(rows, size)
    return model, x, model(x).argmax(1)


@pytest.mark.parametrize("norm", NORMS)
def test_the_first_order_margin_of_a_linear_model_is_its_distance(norm):
    model, x, y = linear()
    got = boundary_margin(model, x, y, norm=norm)["first_order_margin"]
    assert torch.allclose(got, model.distances(x, y, norm), rtol=1e-4)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_the_search_finds_the_distance_where_the_box_is_far(norm):
    model, x, y = linear()
    exact = model.distances(x, y, norm)
    assert exact.max() < (0.4 if norm == "linf" else 1.0)
    got = boundary_margin(model, x, y, norm=norm)["margin"]
    assert bool((got >= exact * (1 - 1e-4)).all())
    assert torch.allclose(got, exact, rtol=0.01)


def test_the_segment_is_halved_down_to_the_boundary():
    """One projection goes a fiftieth too far; halving the segment takes that back."""
    model, x, y = linear(classes=2)
    got = boundary_margin(model, x, y, steps=1)["margin"]
    assert torch.allclose(got, model.distances(x, y, "linf"), rtol=2e-3)


def test_a_curved_boundary_at_a_known_distance():
    """Label 1 outside a circle around the middle: from a point inside, the distance is radius less distance to it."""

    class Circle(nn.Module):
        def forward(self, x):
            return torch.stack([torch.full((len(x),), 0.09), (x - 0.5).square().sum(1)], 1)

    x = 0.5 + torch.tensor([[0.1, 0.0], [0.0, -0.2], [0.12, 0.16], [0.4, 0.0]])
    got = boundary_margin(Circle(), x, torch.zeros(4).long(), norm="l2")
    assert torch.allclose(got["margin"], torch.tensor([0.2, 0.1, 0.1, 0.0]), atol=2e-3)
    assert got["first_order_margin"][3] == 0


def test_where_no_legal_input_is_wrong_the_margin_is_infinite():
    model = LinearModel(torch.tensor([[0.0], [1.0]]), torch.tensor([0.0, -1.5]))
    got = boundary_margin(model, torch.full((2, 1), 0.5), torch.zeros(2).long())
    assert torch.equal(got["margin"], torch.full((2,), torch.inf))
    assert torch.allclose(got["first_order_margin"], torch.ones(2))


@pytest.mark.parametrize("norm", NORMS)
def test_a_network_is_wrong_at_its_margin_and_rows_do_not_depend_on_their_batch(norm):
    torch.manual_seed(0)
    model, x = SmallCNN(width=4).double(), torch.rand(8, 1, 8, 8).double()
    for parameter in model.parameters():
        parameter.data *= 2
    y = model(x).argmax(1)
    whole = boundary_margin(model, x, y, norm=norm)
    assert whole["margin"].isfinite().float().mean() > 0.8
    assert bool((whole["margin"] > 0).all())
    alone = boundary_margin(model, x[3:5], y[3:5], norm=norm)
    for name, reading in whole.items():
        assert torch.allclose(reading[3:5], alone[name])
    assert model.training
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())


def test_the_margin_lies_between_a_certificate_and_an_attack():
    torch.manual_seed(0)
    model, x = SmallCNN(width=4), torch.rand(8, 1, 8, 8)
    y = model(x).argmax(1)
    margin = boundary_margin(model, x, y)["margin"]
    assert bool((ibp(model, x, ball=Ball("linf", 1.0)).radius <= margin).all())
    found = margin.isfinite()
    assert found.float().mean() > 0.5
    ball = Ball("linf", 1.1 * margin[found])
    moved = pgd(model, x[found], y[found], ball=ball, steps=60, objective="margin")
    assert (model(moved).argmax(1) != y[found]).float().mean() > 0.7


def test_a_wrong_row_has_no_margin():
    model, x, y = linear()
    got = boundary_margin(model, x, (y + 1) % 5)
    assert got["margin"].max() == 0
    assert got["first_order_margin"].max() == 0
