import math

import pytest
import torch
from torch import Tensor, nn

from buckler.evasion.hop_skip_jump import hop_skip_jump
from buckler.nets import LinearModel
from buckler.target import Oracle
from buckler.threat import Ball, Norm

NORMS: tuple[Norm, ...] = ("l2", "linf")


@pytest.fixture(scope="module")
def linear() -> tuple[LinearModel, Tensor, Tensor]:
    """Three classes in twenty dimensions, rows in the middle of the box so that it binds nowhere."""
    chance = torch.Generator().manual_seed(0)
    weight = torch.randn(3, 20, generator=chance, dtype=torch.float64)
    model = LinearModel(weight, -weight.sum(1) / 2)
    x = 0.5 + 0.1 * torch.rand(12, 20, generator=chance, dtype=torch.float64)
    return model, x, model(x).argmax(1)


@pytest.mark.parametrize("norm", NORMS)
def test_finds_the_closed_form_distance_within_a_few_percent(linear: tuple[LinearModel, Tensor, Tensor], norm: Norm):
    model, x, y = linear
    ball = Ball(norm, math.inf)
    adversarial = hop_skip_jump(Oracle(model, "labels"), x, y, ball=ball, queries=4000)
    ratio = ball.size(adversarial - x) / model.distances(x, y, norm)
    assert bool((model(adversarial).argmax(1) != y).all())
    assert bool((ratio >= 1).all())
    assert float(ratio.median()) < 1.08
    assert float(ratio.max()) < 1.4


@pytest.mark.parametrize("budget", [5, 100, 1003])
def test_never_passes_the_oracles_budget_nor_a_rows_share(linear: tuple[LinearModel, Tensor, Tensor], budget: int):
    model, x, y = linear
    oracle = Oracle(model, "labels", budget=budget)
    adversarial = hop_skip_jump(oracle, x, y, ball=Ball("l2", math.inf))
    assert oracle.asked <= budget
    assert bool(((adversarial >= 0) & (adversarial <= 1)).all())
    assert oracle.asked >= budget - len(x) * 30
    single = Oracle(model, "labels")
    hop_skip_jump(single, x[:1], y[:1], ball=Ball("l2", math.inf), queries=300)
    assert 250 <= single.asked <= 300


def test_a_door_that_closes_early_leaves_the_best_so_far(linear: tuple[LinearModel, Tensor, Tensor]):
    model, x, y = linear
    oracle = Oracle(model, "labels", budget=12_000)
    real = oracle.labels

    def dearer(x: Tensor) -> Tensor:
        """Charges every row three times, which the attack cannot know."""
        oracle.asked += 2 * len(x)
        return real(x)

    oracle.labels = dearer
    adversarial = hop_skip_jump(oracle, x, y, ball=Ball("l2", math.inf))
    assert bool((model(adversarial).argmax(1) != y).all())


def test_a_row_leaves_inside_its_own_radius_and_stays_legal(linear: tuple[LinearModel, Tensor, Tensor]):
    model, x, y = linear
    exact = model.distances(x, y, "l2")
    factor = torch.where(torch.arange(12) % 2 == 0, 1.5, 0.5)
    ball = Ball("l2", exact * factor)
    oracle = Oracle(model, "labels")
    adversarial = hop_skip_jump(oracle, x, y, ball=ball, queries=2000)
    assert bool(ball.contains(x, adversarial).all())
    assert ((model(adversarial).argmax(1) != y) == (factor > 1)).all()
    assert oracle.asked < 9 * 2000  # the six rows that can be fooled leave early


@pytest.mark.parametrize("norm", NORMS)
def test_a_row_does_not_know_its_batch(linear: tuple[LinearModel, Tensor, Tensor], norm: Norm):
    model, x, y = linear
    ball = Ball(norm, math.inf)
    together = hop_skip_jump(Oracle(model, "labels"), x, y, ball=ball, queries=600, seed=3)
    alone = [hop_skip_jump(Oracle(model, "labels"), x[i : i + 1], y[i : i + 1], ball=ball, queries=600, seed=3)
             for i in range(len(x))]  # fmt: skip
    torch.testing.assert_close(together, torch.cat(alone), rtol=0, atol=1e-12)


def test_an_already_wrong_row_is_its_own_answer_for_one_query(linear: tuple[LinearModel, Tensor, Tensor]):
    model, x, y = linear
    oracle = Oracle(model, "labels")
    adversarial = hop_skip_jump(oracle, x, (y + 1) % 3, ball=Ball("l2", math.inf))
    assert torch.equal(adversarial, x)
    assert oracle.asked == len(x)


@pytest.mark.parametrize("norm", NORMS)
def test_targets_start_from_rows_that_carry_them(norm: Norm):
    """Class 2 is a corner that noise does not reach: only a row of the batch can be the start."""

    class Corner(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            mean = x.flatten(1).mean(1)
            return torch.stack([0.5 - mean, mean - 0.5, 20 * (mean - 0.9)], 1)

    model = Corner()
    low, high = torch.full((3, 16), 0.3), torch.full((2, 16), 0.97)
    x = torch.cat([low + 0.02 * torch.arange(3)[:, None], high])
    y = model(x).argmax(1)
    assert y.tolist() == [0, 0, 0, 2, 2]
    adversarial = hop_skip_jump(Oracle(model, "labels"), x, y, ball=Ball(norm, math.inf), queries=500, goal=2)
    assert bool((model(adversarial).argmax(1) == 2).all())
    assert torch.equal(adversarial[3:], x[3:])
    alone = hop_skip_jump(Oracle(model, "labels"), x[:3], y[:3], ball=Ball(norm, math.inf), queries=500, goal=2)
    assert torch.equal(alone, x[:3])


def test_returns_the_best_met_not_the_last(linear: tuple[LinearModel, Tensor, Tensor]):
    model, x, y = linear
    ball = Ball("l2", math.inf)
    sizes = [
        ball.size(hop_skip_jump(Oracle(model, "labels"), x, y, ball=ball, queries=queries) - x)
        for queries in (200, 400, 800, 1600)
    ]
    for fewer, more in zip(sizes, sizes[1:], strict=False):
        # the same walk, longer: never farther, but for the last partial estimate and the nudge
        assert float((more / fewer).max()) < 1.02


def test_refuses_a_norm_that_it_cannot_walk_in(linear: tuple[LinearModel, Tensor, Tensor]):
    model, x, y = linear
    with pytest.raises(ValueError, match="l2 or linf"):
        hop_skip_jump(Oracle(model, "labels"), x, y, ball=Ball("l1", 1.0))


@pytest.mark.parametrize("norm", NORMS)
def test_is_no_farther_than_foolbox_at_equal_queries(norm: Norm):
    foolbox = pytest.importorskip("foolbox")
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 4)).eval()
    x = torch.rand(16, 1, 4, 4)
    y = model(x).argmax(1)
    oracle = Oracle(model, "labels")
    theirs_oracle = Oracle(model, "logits")

    class Counted(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return theirs_oracle(x)

    wrapped = foolbox.PyTorchModel(Counted().eval(), bounds=(0, 1), device="cpu")
    theirs = foolbox.attacks.HopSkipJumpAttack(steps=5, constraint=norm).run(wrapped, x, y)
    ball = Ball(norm, math.inf)
    ours = hop_skip_jump(oracle, x, y, ball=ball, queries=theirs_oracle.asked // len(x))
    assert oracle.asked <= theirs_oracle.asked
    assert bool((model(ours).argmax(1) != y).all())
    assert ball.size(ours - x).median() <= 1.02 * ball.size(theirs - x).median()
