import pytest
import torch
from torch import nn
from torch.nn import functional as F

from buckler.evasion.curvature import curvature
from buckler.nets import LinearModel, SmallCNN


class Quadratic(nn.Module):
    """Logits (0, x A x / 2): the margin for label 0 has the Hessian A."""

    def __init__(self, matrix):
        super().__init__()
        self.matrix = nn.Parameter(matrix)

    def forward(self, x):
        value = (x @ self.matrix * x).sum(1) / 2
        return torch.stack([torch.zeros_like(value), value], 1)


@pytest.mark.parametrize("sign", [1, -1])
def test_a_quadratic_has_the_curvature_of_its_matrix(sign):
    torch.manual_seed(0)
    basis = torch.linalg.qr(torch.randn(6, 6)).Q
    matrix = sign * (basis * torch.tensor([5.0, 1, 0.5, -1, -2, 0])) @ basis.T
    model, x, y = Quadratic(matrix), 0.1 + 0.8 * torch.rand(8, 6), torch.zeros(8).long()
    got = curvature(model, x, y, objective="margin", length=0.1, iterations=30)
    assert torch.allclose(got["largest_eigenvalue"], torch.full((8,), 5.0 * sign), rtol=1e-3)
    way = (x @ matrix).sign() / 6**0.5
    assert torch.allclose(got["curvature"], (way @ matrix).norm(dim=1), rtol=1e-3)


def test_the_length_does_not_matter_to_a_quadratic_and_does_to_a_kink():
    torch.manual_seed(0)
    model, x, y = Quadratic(torch.eye(4)), torch.rand(3, 4), torch.zeros(3).long()
    for length in (0.01, 0.5):
        got = curvature(model, x, y, objective="margin", length=length)
        assert torch.allclose(got["curvature"], torch.ones(3), rtol=1e-3)

    class Kink(nn.Module):
        def forward(self, x):
            return torch.stack([torch.zeros(len(x)), x.sum(1) + F.relu(x.sum(1) - 1)], 1)

    x = torch.full((1, 4), 0.2)
    near, far = (
        float(curvature(Kink(), x, y[:1], objective="margin", length=length)["curvature"]) for length in (0.05, 0.5)
    )
    assert near == 0
    assert far == pytest.approx(2 / 0.5)  # the gradient doubles from (1, 1, 1, 1)


def test_a_linear_model_has_none():
    torch.manual_seed(0)
    model = LinearModel(torch.randn(2, 6), torch.zeros(2))
    got = curvature(model, torch.rand(5, 6), torch.zeros(5).long(), objective="margin")
    assert got["curvature"].abs().max() < 1e-5
    assert got["largest_eigenvalue"].abs().max() < 1e-5


def test_cross_entropy_of_a_linear_model_has_a_closed_form():
    """Two classes: the Hessian is p (1 - p) times the outer square of the gap of the weights."""
    torch.manual_seed(0)
    model = LinearModel(torch.randn(2, 6), torch.zeros(2)).double()
    x, y = torch.rand(5, 6).double(), torch.zeros(5).long()
    p = model(x).softmax(1)[:, 0]
    gap = model.weight[1] - model.weight[0]
    got = curvature(model, x, y, length=1e-3)
    assert torch.allclose(got["largest_eigenvalue"], p * (1 - p) * gap.square().sum(), rtol=1e-4)
    expected = p * (1 - p) * gap.norm() * gap.abs().sum() / 6**0.5
    assert torch.allclose(got["curvature"], expected, rtol=1e-2)


def test_rows_have_their_own_draws_and_nothing_else_changes():
    torch.manual_seed(0)
    model, x, y = SmallCNN(width=4).double(), torch.rand(5, 1, 8, 8).double(), torch.arange(5)
    state = torch.random.get_rng_state()
    whole = curvature(model, x, y, iterations=3)
    alone = curvature(model, x[2:3], y[2:3], iterations=3)
    assert torch.allclose(whole["largest_eigenvalue"][2], alone["largest_eigenvalue"][0])
    assert torch.equal(state, torch.random.get_rng_state())
    assert model.training
    assert all(parameter.grad is None for parameter in model.parameters())


def test_bad_knobs_get_one_sentence():
    with pytest.raises(ValueError, match="length > 0"):
        curvature(nn.Identity(), torch.rand(1, 3), torch.tensor([0]), length=0.0)
