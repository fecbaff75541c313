import pytest
import torch
from scipy import ndimage
from torch import nn

from buckler.evasion.feature_squeezing import _median, feature_squeezing
from buckler.evasion.pgd import pgd
from buckler.kinds import Adaptive
from buckler.nets import LinearModel, SmallCNN
from buckler.threat import Ball


@pytest.mark.parametrize("window", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("shape", [(2, 1, 8, 8), (3, 3, 5, 7)])
def test_the_median_is_that_of_scipy(window, shape):
    torch.manual_seed(window)
    x = torch.rand(shape)
    expected = ndimage.median_filter(x.numpy(), size=(1, 1, window, window), mode="reflect")
    assert torch.equal(_median(x, window), torch.from_numpy(expected))


def test_bits_are_reduced_to_evenly_spaced_levels():
    seen = []

    class Watched(nn.Module):
        def forward(self, x):
            seen.append(x)
            return x

    x = torch.linspace(0, 1, 101)[:, None]
    feature_squeezing(Watched(), bits=1, window=1)(x)
    feature_squeezing(Watched(), bits=2, window=1)(x)
    assert torch.equal(seen[0], (x > 0.5).float())
    assert torch.allclose(seen[1].unique(), torch.tensor([0, 1 / 3, 2 / 3, 1]))
    assert (seen[1] - x).abs().max() <= 1 / 6 + 1e-6


def test_the_surrogate_answers_alike_and_lets_the_gradient_through():
    torch.manual_seed(0)
    model = SmallCNN(width=4)
    guarded = feature_squeezing(model, bits=3)
    assert isinstance(guarded, Adaptive)
    x = torch.rand(5, 1, 8, 8, requires_grad=True)
    hard, soft = guarded(x), guarded.surrogate()(x)
    assert torch.equal(hard, soft)
    assert not torch.equal(hard, model(x))
    assert torch.autograd.grad(hard.sum(), x)[0].abs().max() == 0
    assert torch.autograd.grad(soft.sum(), x)[0].abs().max() > 0


def test_bits_alone_have_the_gradient_of_the_model():
    torch.manual_seed(0)
    model = LinearModel(torch.randn(3, 6), torch.zeros(3))
    x = torch.rand(2, 6, requires_grad=True)
    (grad,) = torch.autograd.grad(feature_squeezing(model, window=1).surrogate()(x)[:, 1].sum(), x)
    assert torch.allclose(grad, model.weight[1].expand(2, 6))


def test_an_adaptive_attack_gets_through_where_a_naive_one_sees_no_gradient():
    torch.manual_seed(0)
    model = LinearModel(torch.randn(2, 64), torch.zeros(2))
    guarded = feature_squeezing(model, bits=4, window=2)
    x = 0.3 + 0.4 * torch.rand(20, 1, 8, 8)
    y = guarded(x).argmax(1)
    ball = Ball("linf", 0.3)
    adaptive = pgd(guarded.surrogate(), x, y, ball=ball, steps=20)
    assert (guarded(adaptive).argmax(1) != y).float().mean() > 0.8
    naive = pgd(guarded, x, y, ball=ball, steps=20)
    assert (guarded(naive).argmax(1) != y).float().mean() < 0.4


def test_it_holds_the_model_itself():
    model = SmallCNN(width=4).eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    guarded = feature_squeezing(model)
    assert set(guarded.state_dict()) == {f"model.{name}" for name in before}
    assert set(guarded.surrogate().state_dict()) == set(guarded.state_dict())
    assert not guarded.training
    guarded(torch.rand(2, 1, 8, 8))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_the_score_is_the_largest_change_of_the_softmax():
    torch.manual_seed(0)
    model = LinearModel(10 * torch.randn(4, 16), torch.zeros(4))
    guarded = feature_squeezing(model, bits=2, window=2)
    x = torch.rand(30, 1, 4, 4)
    plain = model(x).softmax(1)
    expected = torch.stack(
        [
            (model((3 * x).round() / 3).softmax(1) - plain).abs().sum(1),
            (model(_median(x, 2)).softmax(1) - plain).abs().sum(1),
        ]
    ).amax(0)
    assert torch.allclose(guarded.score(x), expected)
    assert torch.equal(guarded.score(torch.ones(2, 1, 4, 4)), torch.zeros(2))


def test_bad_input_gets_one_sentence():
    with pytest.raises(ValueError, match="expected 1 to 16 bits"):
        feature_squeezing(nn.Identity(), bits=0)
    with pytest.raises(ValueError, match="window=1 for other inputs"):
        feature_squeezing(nn.Identity())(torch.rand(2, 6))
