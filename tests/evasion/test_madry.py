import pytest
import torch
from torch.nn import functional as F
from training_problems import WithNorm, train, two_classes, worst_case

from buckler.evasion._inner import start, trainable
from buckler.evasion.madry import madry
from buckler.nets import SmallCNN
from buckler.threat import Ball


@pytest.mark.parametrize(("norm", "radius"), [("linf", 0.1), ("l2", 0.25)])
def test_the_inner_search_reaches_the_worst_case_of_a_linear_model(norm, radius):
    model, x, y = two_classes()
    losses = madry(model, x, y, ball=Ball(norm, radius), steps=20, step=0.5)
    assert losses.shape == (40,)
    assert torch.allclose(losses, worst_case(model, x, y, norm, radius), rtol=2e-3, atol=1e-5)
    assert not torch.allclose(losses, F.cross_entropy(model(x), y, reduction="none"), rtol=0.05)


def test_every_row_has_its_own_radius():
    model, x, y = two_classes()
    radii = torch.linspace(0, 0.2, len(x))
    losses = madry(model, x, y, ball=Ball("linf", radii))
    expected = torch.stack([worst_case(model, x[i : i + 1], y[i : i + 1], "linf", radii[i])[0] for i in range(len(x))])
    assert torch.allclose(losses, expected, rtol=1e-4, atol=1e-5)


def test_the_inner_search_leaves_statistics_modes_and_gradients_alone():
    torch.manual_seed(0)
    model = WithNorm().train()
    model.sealed.eval()
    model.head.bias.requires_grad_(False)
    x, y = torch.rand(64, 6), torch.randint(3, (64,))
    seen = []
    model.norm.register_forward_pre_hook(lambda module, inputs: seen.append((module.training, inputs[0].detach())))
    losses = madry(model, x, y, ball=Ball("linf", 0.2))
    assert [training for training, _ in seen] == [False] * 10 + [True]
    assert model.norm.num_batches_tracked == 1
    assert torch.allclose(model.norm.running_mean, 0.1 * seen[-1][1].mean(0), atol=1e-6)
    assert model.training
    assert model.norm.training
    assert not model.sealed.training
    assert not model.head.bias.requires_grad
    assert model.head.weight.requires_grad
    assert all(parameter.grad is None for parameter in model.parameters())
    losses.mean().backward()
    assert model.head.weight.grad.abs().sum() > 0


def test_each_call_draws_afresh_and_the_global_seed_reproduces_it():
    model, x, y = two_classes()
    ball = Ball("linf", 0.1)
    torch.manual_seed(3)
    first, second = (madry(model, x, y, ball=ball, steps=0) for _ in range(2))
    torch.manual_seed(3)
    assert torch.equal(first, madry(model, x, y, ball=ball, steps=0))
    assert not torch.equal(first, second)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_the_start_fills_the_ball(norm):
    torch.manual_seed(0)
    x = torch.full((4000, 2), 0.5)
    delta = start(x, Ball(norm, 0.2)) - x
    size = delta.abs().amax(1) if norm == "linf" else delta.norm(dim=1)
    # uniform in a plane: a share t squared lies within t radii
    assert size.max() <= 0.2 + 1e-6
    assert abs((size < 0.1).float().mean() - 0.25) < 0.03
    assert delta.mean(0).abs().max() < 0.01


@pytest.mark.parametrize("ball", [Ball("l1", 1), Ball("l0", 3), Ball("linf", torch.inf)])
def test_other_balls_are_refused(ball):
    with pytest.raises(ValueError, match="linf or l2 with a finite radius"):
        trainable(ball)


def test_training_on_it_buys_robustness():
    accuracy, robust = train(lambda model, x, y: F.cross_entropy(model(x), y, reduction="none"))
    assert accuracy > 0.97
    assert robust < 0.3
    accuracy, robust = train(lambda model, x, y: madry(model, x, y, ball=Ball("linf", 0.1), steps=3))
    assert robust > 0.9


def test_images_in_double_precision():
    torch.manual_seed(0)
    model, x = SmallCNN(width=4).double(), torch.rand(3, 1, 8, 8).double()
    losses = madry(model, x, torch.tensor([1, 2, 3]), ball=Ball("l2", 0.5), steps=2)
    assert losses.dtype == torch.float64
