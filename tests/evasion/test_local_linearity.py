import pytest
import torch
from torch.nn import functional as F

from buckler.evasion.local_linearity import local_linearity
from buckler.nets import LinearModel, SmallCNN
from buckler.threat import Ball


def linear(rows=20, size=10):
    torch.manual_seed(0)
    model = LinearModel(torch.randn(2, size), torch.randn(2))
    return model, 0.3 + 0.4 * torch.rand(rows, size), torch.zeros(rows).long()


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_the_margin_of_a_linear_model_is_linear(norm):
    model, x, y = linear()
    reading = local_linearity(model, x, y, ball=Ball(norm, 0.2), objective="margin")["local_linearity"]
    assert reading.shape == (20,)
    assert reading.max() < 1e-5


@pytest.mark.parametrize(("norm", "radius"), [("linf", 0.1), ("l2", 0.3)])
def test_the_cross_entropy_of_a_linear_model_has_a_closed_form(norm, radius):
    """Along the gap of the weights the error of the tangent is convex: the largest is at one end of the ball."""
    model, x, y = linear()
    gap = (model.weight[1] - model.weight[0]).detach()
    reach = radius * float(gap.abs().sum() if norm == "linf" else gap.norm())
    z = (model(x)[:, 1] - model(x)[:, 0]).detach()
    ends = torch.stack([F.softplus(z + s) - F.softplus(z) - s * z.sigmoid() for s in (-reach, reach)])
    found = local_linearity(model, x, y, ball=Ball(norm, radius), steps=30)["local_linearity"]
    assert bool((found <= ends.amax(0) * 1.001 + 1e-6).all())
    assert bool(torch.isclose(found, ends, rtol=0.02, atol=1e-5).any(0).all())


def test_a_kink_is_seen_only_from_where_it_is_in_reach():
    class Kink(torch.nn.Module):
        def forward(self, x):
            return torch.stack([torch.zeros(len(x)), F.relu(x.sum(1) - 1)], 1)

    x = torch.tensor([[0.2, 0.2], [0.45, 0.45]])
    reading = local_linearity(Kink(), x, torch.tensor([0, 0]), ball=Ball("linf", 0.1), objective="margin", steps=30)
    # from a sum of 0.9 the ball reaches 1.1: the tangent there is flat and misses 0.1
    assert reading["local_linearity"].tolist() == pytest.approx([0, 0.1], abs=1e-5)


def test_it_finds_more_than_random_sampling():
    torch.manual_seed(0)
    model = SmallCNN(width=8)
    for parameter in model.parameters():
        parameter.data *= 3
    x, y = torch.rand(6, 1, 8, 8), torch.arange(6)
    found = local_linearity(model, x, y, ball=Ball("linf", 0.1), steps=20)["local_linearity"]
    place = x.clone().requires_grad_()
    base = F.cross_entropy(model(place), y, reduction="none")
    (slope,) = torch.autograd.grad(base.sum(), place)
    sampled = torch.zeros(6)
    for _ in range(50):
        moved = (x + 0.1 * (2 * torch.rand_like(x) - 1)).clamp(0, 1)
        error = F.cross_entropy(model(moved), y, reduction="none") - base - ((moved - x) * slope).flatten(1).sum(1)
        sampled = torch.maximum(sampled, error.detach().abs())
    assert bool((found > sampled).all())


def test_rows_have_their_own_draws_and_radii():
    torch.manual_seed(0)
    model, x, y = SmallCNN(width=4).double(), torch.rand(5, 1, 8, 8).double(), torch.arange(5)
    radii = torch.linspace(0, 0.2, 5)
    state = torch.random.get_rng_state()
    whole = local_linearity(model, x, y, ball=Ball("linf", radii), seed=3)["local_linearity"]
    alone = local_linearity(model, x[3:4], y[3:4], ball=Ball("linf", radii[3:4]), seed=3)["local_linearity"]
    assert torch.allclose(whole[3], alone[0])
    assert whole[0] == 0
    assert torch.equal(state, torch.random.get_rng_state())
    assert model.training


def test_other_norms_are_refused():
    model, x, y = linear()
    with pytest.raises(ValueError, match="linf or l2"):
        local_linearity(model, x, y, ball=Ball("l1", 1))
