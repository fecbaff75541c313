import pytest
import torch
from torch.nn import functional as F
from training_problems import WithNorm, train, two_classes

from buckler.evasion.trades import trades
from buckler.threat import Ball


def divergence(clean, moved):
    p, q = clean.softmax(1), moved.softmax(1)
    return (p * (p.log() - q.log())).sum(1)


def test_without_beta_it_is_cross_entropy():
    model, x, y = two_classes()
    losses = trades(model, x, y, ball=Ball("linf", 0.1), beta=0.0)
    assert torch.allclose(losses, F.cross_entropy(model(x), y, reduction="none"))


@pytest.mark.parametrize(("norm", "radius"), [("linf", 0.05), ("l2", 0.2)])
def test_the_neighbour_is_an_extreme_of_the_ball(norm, radius):
    """On two linear classes the divergence is convex along the gap, so its maxima are the two ends of the ball."""
    model, x, y = two_classes()
    gap = (model.weight[1] - model.weight[0]).detach()
    way = radius * (gap.sign() if norm == "linf" else gap / gap.norm())
    ends = torch.stack([divergence(model(x), model(x + way)), divergence(model(x), model(x - way))])
    natural = F.cross_entropy(model(x), y, reduction="none")
    got = (trades(model, x, y, ball=Ball(norm, radius), beta=6.0, steps=20) - natural) / 6
    assert bool(torch.isclose(got, ends, rtol=1e-2, atol=1e-5).any(0).all())


def test_gradients_flow_through_both_predictions():
    torch.manual_seed(1)
    model, x, y = two_classes(rows=1)
    ball = Ball("linf", 0.05)
    moved = []
    model.register_forward_pre_hook(lambda module, inputs: moved.append(inputs[0].detach()))
    losses = trades(model, x, y, ball=ball)
    (grad,) = torch.autograd.grad(losses.sum(), model.weight)
    before, after = moved[-2:]
    assert torch.equal(before, x)
    natural, neighbour = model(before), model(after)
    expected = F.cross_entropy(natural, y) + 6 * divergence(natural, neighbour).sum()
    assert torch.allclose(grad, torch.autograd.grad(expected, model.weight)[0], atol=1e-5)


def test_the_inner_search_leaves_statistics_and_modes_alone():
    torch.manual_seed(0)
    model = WithNorm().train()
    model.sealed.eval()
    x, y = torch.rand(64, 6), torch.randint(3, (64,))
    seen = []
    model.norm.register_forward_pre_hook(lambda module, inputs: seen.append((module.training, inputs[0].detach())))
    losses = trades(model, x, y, ball=Ball("linf", 0.2), steps=4)
    assert [training for training, _ in seen] == [False] * 5 + [True, True]
    assert torch.equal(seen[-2][1], x)
    assert (seen[-1][1] - x).abs().amax() <= 0.2 + 1e-6
    assert model.norm.num_batches_tracked == 2
    assert torch.allclose(model.norm.running_mean, 0.09 * x.mean(0) + 0.1 * seen[-1][1].mean(0), atol=1e-6)
    assert model.training
    assert not model.sealed.training
    assert all(parameter.grad is None for parameter in model.parameters())
    losses.mean().backward()


def test_training_on_it_buys_robustness():
    _, robust = train(lambda model, x, y: trades(model, x, y, ball=Ball("linf", 0.1), steps=3))
    assert robust > 0.9
