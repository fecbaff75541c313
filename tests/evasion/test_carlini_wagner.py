import math

import pytest
import torch
from torch import Tensor, nn

from buckler.evasion.carlini_wagner import carlini_wagner
from buckler.nets import LinearModel
from buckler.target import metered
from buckler.threat import Ball, Norm

NORMS: tuple[Norm, ...] = ("l2", "linf")


@pytest.fixture(scope="module")
def linear() -> tuple[LinearModel, Tensor, Tensor]:
    """Three classes, rows in the middle of the box and not nearer to a boundary than what Adam's steps resolve."""
    chance = torch.Generator().manual_seed(0)
    weight = torch.randn(3, 12, generator=chance, dtype=torch.float64)
    model = LinearModel(weight, -weight.sum(1) / 2)
    x = 0.5 + 0.1 * torch.rand(40, 12, generator=chance, dtype=torch.float64)
    x = x[model.distances(x, model(x).argmax(1), "linf") > 0.01][:8]
    return model, x, model(x).argmax(1)


@pytest.fixture(scope="module")
def two(linear: tuple[LinearModel, Tensor, Tensor]) -> tuple[LinearModel, Tensor, Tensor]:
    """Two classes: one boundary, so no local minimum on the boundary of a farther class."""
    model, x, _ = linear
    weight = model.weight.detach()[:2]
    model = LinearModel(weight, -(weight @ torch.full((12,), 0.45, dtype=torch.float64)))
    return model, x[:4], model(x[:4]).argmax(1)


@pytest.mark.parametrize(("norm", "within"), [("l2", 1.05), ("linf", 1.15)])
def test_finds_the_closed_form_distance(two: tuple[LinearModel, Tensor, Tensor], norm: Norm, within: float):
    model, x, y = two
    ball = Ball(norm, math.inf)
    adversarial = carlini_wagner(model, x, y, ball=ball, steps=300, searches=6, constant=0.1)
    ratio = ball.size(adversarial - x) / model.distances(x, y, norm)
    assert bool((model(adversarial).argmax(1) != y).all())
    assert bool((ratio >= 1).all())
    assert float(ratio.max()) < within


def test_the_search_finds_constants_that_are_orders_of_magnitude_apart(two: tuple[LinearModel, Tensor, Tensor]):
    """A model whose logits are a thousandth as large needs a constant a thousand times as large, and gets it."""
    model, x, y = two
    small = LinearModel(model.weight.detach() / 1000, model.bias.detach() / 1000)
    ball = Ball("l2", math.inf)
    adversarial = carlini_wagner(small, x[:2], y[:2], ball=ball, steps=150, searches=9)
    ratio = ball.size(adversarial - x[:2]) / model.distances(x[:2], y[:2], "l2")
    assert float(ratio.max()) < 1.1


@pytest.mark.parametrize("norm", NORMS)
def test_a_row_does_not_know_its_batch(linear: tuple[LinearModel, Tensor, Tensor], norm: Norm):
    model, x, y = linear
    ball = Ball(norm, math.inf)

    def run(rows: slice) -> Tensor:
        return carlini_wagner(model, x[rows], y[rows], ball=ball, steps=25, searches=2, constant=1.0)

    alone = torch.cat([run(slice(row, row + 1)) for row in range(3)])
    torch.testing.assert_close(run(slice(0, 3)), alone, rtol=0, atol=1e-10)


@pytest.mark.parametrize("norm", NORMS)
def test_a_finite_radius_per_row_ends_early_and_is_kept(two: tuple[LinearModel, Tensor, Tensor], norm: Norm):
    model, x, y = two
    factor = torch.where(torch.arange(4) % 2 == 0, 1.5, 0.5)
    ball = Ball(norm, model.distances(x, y, norm) * factor)
    adversarial = carlini_wagner(model, x, y, ball=ball, steps=200, searches=4, constant=0.1)
    assert bool(ball.contains(x, adversarial).all())
    assert ((model(adversarial).argmax(1) != y) == (factor > 1)).all()
    easy = factor > 1
    with metered(model) as bounded:
        carlini_wagner(model, x[easy], y[easy], ball=ball.rows(easy), steps=200, searches=4, constant=0.1)
    with metered(model) as free:
        carlini_wagner(model, x[easy], y[easy], ball=Ball(norm, math.inf), steps=200, searches=4, constant=0.1)
    assert bounded.forwards < 0.8 * free.forwards


@pytest.mark.parametrize("norm", NORMS)
def test_targets_and_confidence_are_met(linear: tuple[LinearModel, Tensor, Tensor], norm: Norm):
    model, x, y = linear
    goal = (y + 1) % 3
    adversarial = carlini_wagner(
        model,
        x[:4],
        y[:4],
        ball=Ball(norm, math.inf),
        goal=goal[:4],
        confidence=0.5,
        steps=200,
        searches=4,
        constant=1.0,
    )
    logits = model(adversarial).detach()
    lead = logits.gather(1, goal[:4, None]) - logits.scatter(1, goal[:4, None], -torch.inf).amax(1, keepdim=True)
    assert bool((lead >= 0.5 - 1e-9).all())
    assert float(lead.max()) < 1.5  # no more than asked for, but for a step


def test_saturated_pixels_move():
    """Rows of exact zeros and ones: without room at the edge the change of variables has no gradient there."""
    chance = torch.Generator().manual_seed(1)
    weight = torch.randn(2, 16, generator=chance)
    x = (torch.rand(4, 16, generator=chance) > 0.5).float()
    inward = torch.where(x[:1] == 0, 1.0, -1.0)
    weight[1] = weight[0] + 0.3 * inward.squeeze(0)
    model = LinearModel(weight, torch.tensor([0.0, -0.15]) - 0.3 * (inward @ x[0]).repeat(2) * torch.tensor([0.0, 1.0]))
    y = model(x[:1]).argmax(1)
    ball = Ball("l2", math.inf)
    adversarial = carlini_wagner(model, x[:1], y, ball=ball, steps=400, searches=5, constant=0.1)
    # every pixel may move the useful way, so the distance without the box is attainable
    ratio = ball.size(adversarial - x[:1]) / model.distances(x[:1], y, "l2")
    assert int(model(adversarial).argmax(1)) != int(y)
    assert float(ratio) < 1.1


def test_refuses_other_norms(linear: tuple[LinearModel, Tensor, Tensor]):
    model, x, y = linear
    with pytest.raises(ValueError, match="l2 or linf"):
        carlini_wagner(model, x, y, ball=Ball("l1", 1.0))


def test_is_as_near_as_foolbox():
    foolbox = pytest.importorskip("foolbox")
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 24), nn.Tanh(), nn.Linear(24, 4)).eval()
    x = torch.rand(6, 1, 4, 4)
    y = model(x).argmax(1)
    attack = foolbox.attacks.L2CarliniWagnerAttack(steps=150, binary_search_steps=5, initial_const=0.1)
    theirs, _, success = attack(foolbox.PyTorchModel(model, bounds=(0, 1), device="cpu"), x, y, epsilons=None)
    ball = Ball("l2", math.inf)
    ours = carlini_wagner(model, x, y, ball=ball, steps=150, searches=5, constant=0.1)
    assert bool(success.all())
    assert bool((model(ours).argmax(1) != y).all())
    assert ball.size(ours - x).median() <= 1.03 * ball.size(theirs - x).median()
