import pytest
import torch

from buckler.evasion.gradient_norm import gradient_norm
from buckler.nets import LinearModel, SmallCNN


@pytest.mark.parametrize(("norm", "order"), [("linf", 1), ("l2", 2), ("l1", torch.inf)])
def test_a_linear_model_has_a_closed_form(norm, order):
    """Cross-entropy on two classes: its gradient is (chance of the other class) times the gap of the weights."""
    torch.manual_seed(0)
    model = LinearModel(torch.randn(2, 12), torch.randn(2))
    x, y = torch.rand(9, 12), torch.randint(2, (9,))
    gap = torch.linalg.vector_norm(model.weight[1] - model.weight[0], order)
    other = model(x).softmax(1).gather(1, 1 - y[:, None]).squeeze(1)
    assert torch.allclose(gradient_norm(model, x, y, norm=norm)["gradient_norm"], other * gap, rtol=1e-4)
    margin = gradient_norm(model, x, y, norm=norm, objective="margin")["gradient_norm"]
    assert torch.allclose(margin, gap.expand(9), rtol=1e-4)


def test_it_is_the_growth_of_the_loss_over_a_small_step():
    torch.manual_seed(0)
    model = SmallCNN(width=4).double()
    x, y = torch.rand(4, 1, 8, 8).double().requires_grad_(), torch.tensor([1, 2, 3, 4])
    loss = torch.nn.functional.cross_entropy
    (grad,) = torch.autograd.grad(loss(model(x), y, reduction="sum"), x)
    grown = loss(model(x + 1e-6 * grad.sign()), y, reduction="none") - loss(model(x), y, reduction="none")
    assert torch.allclose(gradient_norm(model, x, y)["gradient_norm"], grown / 1e-6, rtol=1e-3)
    assert x.grad is None
    assert all(parameter.grad is None for parameter in model.parameters())
    assert model.training


def test_l0_is_refused():
    model = LinearModel(torch.randn(2, 3), torch.zeros(2))
    with pytest.raises(ValueError, match="l0 has no gradient norm"):
        gradient_norm(model, torch.rand(1, 3), torch.tensor([0]), norm="l0")
