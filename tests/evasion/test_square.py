"""Square Attack against closed forms, a naive loop, query counts, and the reference implementation."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from buckler.evasion.square import _bump, _ends, _side, square
from buckler.nets import LinearModel, SmallCNN
from buckler.target import Oracle
from buckler.threat import Ball, Norm

NORMS: list[Norm] = ["linf", "l2", "l1"]


def fooled(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    with torch.no_grad():
        return model(x).argmax(1) != y


def linear(*shape: int) -> tuple[LinearModel, Tensor, Tensor]:
    torch.manual_seed(0)
    size = int(torch.tensor(shape).prod())
    model = LinearModel(torch.randn(3, size), torch.zeros(3))
    x = torch.rand(8, *shape) * 0.1 + 0.45
    return model, x, model(x).argmax(1)


@pytest.mark.parametrize("shape", [(36,), (2, 18), (1, 6, 6), (3, 5, 7)])
@pytest.mark.parametrize("norm", NORMS)
def test_it_succeeds_beyond_the_closest_boundary_and_never_before(norm, shape) -> None:
    model, x, y = linear(*shape)
    distance = model.distances(x, y, norm)
    for factor, expected in ((0.95, False), (3.0, True)):
        ball = Ball(norm, factor * distance)
        found = square(Oracle(model), x, y, ball=ball, queries=300)
        assert ball.contains(x, found).all()
        assert (fooled(model, found, y) == expected).all(), f"{norm} at {factor} of the distance"


def test_on_a_linear_model_linf_ends_in_the_best_corner() -> None:
    model, x, y = linear(1, 4, 4)
    ball = Ball("linf", 0.9 * model.distances(x, y, "linf"))
    found = square(Oracle(model, "logits"), x, y, ball=ball, queries=800)
    size = (found - x).abs().flatten(1)
    assert torch.allclose(size, ball.radius[:, None].expand_as(size), atol=1e-6)
    margin = model(found).detach()
    reached = margin.gather(1, y[:, None]).squeeze(1) - margin.scatter(1, y[:, None], -torch.inf).amax(1)
    gaps = (model.weight[y][:, None] - model.weight[None]).detach().abs().sum(2)
    before = model(x).detach()
    ideal = before.gather(1, y[:, None]) - before - ball.radius[:, None] * gaps
    lowest = ideal.scatter(1, y[:, None], torch.inf).amin(1)
    # single pixels are tried last: a corner that none of them improves is reached, the best one for some class
    assert (reached <= lowest + 0.35 * (before.amax(1) - before.amin(1))).all()


def test_an_answer_that_is_known_is_not_asked_again_and_nothing_else_changes() -> None:
    """A naive loop over one row with the same draws, which asks everything, must accept the same proposals."""
    torch.manual_seed(2)
    model = SmallCNN(width=4, side=6).eval()
    x = torch.rand(3, 1, 6, 6)
    y = model(x).argmax(1)
    ball, queries = Ball("linf", 1e-4), 400
    oracle = Oracle(model, "logits")
    found = square(oracle, x, y, ball=ball, queries=queries, seed=5)
    assert oracle.asked < 0.5 * queries * len(x)
    for row in range(3):
        assert torch.allclose(_naive(model, x[row : row + 1], y[row : row + 1], 1e-4, queries), found[row], atol=1e-7)


def _naive(model: nn.Module, x: Tensor, y: Tensor, radius: float, queries: int) -> Tensor:
    from buckler.dice import Dice

    def margin(point: Tensor) -> float:
        logits = model(point).detach()[0]
        return float(logits[y] - max(value for k, value in enumerate(logits) if k != int(y)))

    dice = Dice(x, 5)
    best = (x + radius * dice.signs(1, 1, 6)).clamp(0, 1)
    lowest = margin(best)
    blocks = [dice.uniform(50, 3)[0] for _ in range(queries // 50)]
    for count in range(1, queries):
        down, across, sign = blocks[(count - 1) // 50][(count - 1) % 50]
        share = 0.8
        for end in (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000):
            share /= 2 if count > end * queries / 10_000 else 1
        side = min(6, max(1, round((share * 36) ** 0.5)))
        top, left = int(down * (7 - side)), int(across * (7 - side))
        tried = best.clone()
        window = (slice(None), slice(None), slice(top, top + side), slice(left, left + side))
        tried[window] = (x[window] + (radius if sign < 0.5 else -radius)).clamp(0, 1)
        value = margin(tried)
        if value < lowest:
            best, lowest = tried, value
    return best[0]


@pytest.mark.parametrize("norm", NORMS)
def test_a_row_does_not_know_its_batch(norm) -> None:
    torch.manual_seed(1)
    model = SmallCNN(width=4).double().eval()
    x = torch.rand(5, 1, 8, 8, dtype=torch.float64)
    y = model(x).argmax(1)
    ball = Ball(norm, {"linf": 0.03, "l2": 0.2, "l1": 1.0}[norm])
    together = square(Oracle(model), x, y, ball=ball, queries=40)
    alone = [square(Oracle(model), x[i : i + 1], y[i : i + 1], ball=ball, queries=40) for i in range(5)]
    assert torch.allclose(together, torch.cat(alone), atol=1e-7)


def test_an_oracle_that_runs_dry_ends_the_attack_with_its_best() -> None:
    model, x, y = linear(1, 6, 6)
    start = square(Oracle(model), x, y, ball=Ball("linf", 1e-3), queries=1)
    for budget in (0, 8, 30):
        oracle = Oracle(model, budget=budget)
        found = square(oracle, x, y, ball=Ball("linf", 1e-3), queries=100)
        assert oracle.asked <= budget
        assert Ball("linf", 1e-3).contains(x, found).all()
        assert torch.equal(found, start if budget == 8 else x) or budget == 30


def test_scores_that_are_rounded_to_one_still_lead_the_way() -> None:
    """A score of 1.0 hides the margin; the other scores' logarithms do not."""
    torch.manual_seed(0)
    weight = torch.randn(3, 36) * 15
    x = torch.rand(6, 1, 6, 6) * 0.1 + 0.45
    model = LinearModel(weight, torch.zeros(3))
    y = model(x).argmax(1)
    certain = model(x).softmax(1).amax(1) == 1.0
    assert certain.any()
    ball = Ball("linf", 3 * model.distances(x, y, "linf"))
    found = square(Oracle(model), x, y, ball=ball, queries=400)
    assert fooled(model, found, y)[certain].all()


def test_a_goal_is_reached() -> None:
    model, x, y = linear(1, 6, 6)
    goal = (y + 1) % 3
    found = square(Oracle(model), x, y, ball=Ball("linf", 0.4), goal=goal, queries=300)
    assert (model(found).argmax(1) == goal).all()


def test_shapes_and_oracles_it_cannot_use_are_refused() -> None:
    model, x, y = linear(1, 6, 6)
    with pytest.raises(ValueError, match="expected inputs"):
        square(Oracle(model), x[:, None], y, ball=Ball("linf", 0.1))
    with pytest.raises(ValueError, match="expected an oracle that reveals scores or logits, got labels"):
        square(Oracle(model, "labels"), x, y, ball=Ball("linf", 0.1))
    with pytest.raises(ValueError, match="expected a ball in linf, l2 or l1"):
        square(Oracle(model), x, y, ball=Ball("l0", 3))


def test_the_schedule_is_the_paper_s() -> None:
    assert _ends(10_000) == [10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000]
    assert [_side(0.8 / 2**k, 28, 28, odd=False)[0] for k in range(10)] == [25, 18, 13, 9, 6, 4, 3, 2, 2, 1]
    for norm in ("l2", "l1"):
        for tall, wide in ((1, 1), (1, 6), (5, 5), (7, 3)):
            bump = _bump(tall, wide, norm)
            assert float(bump.norm() if norm == "l2" else bump.abs().sum()) == pytest.approx(1)
            assert tall * wide == 1 or (bump.max() > 0 > bump.min())


@pytest.mark.parametrize("norm", NORMS)
def test_no_weaker_than_the_reference_at_equal_queries(norm) -> None:
    reference = pytest.importorskip("pyautoattack.square")
    torch.manual_seed(3)
    model = SmallCNN(width=6).eval().requires_grad_(False)
    x = torch.rand(48, 1, 8, 8)
    y = model(x).argmax(1)
    radius = {"linf": 0.03, "l2": 0.25, "l1": 1.0}[norm]
    name = {"linf": "Linf", "l2": "L2", "l1": "L1"}[norm]
    peer = reference.SquareAttack(model, norm=name, n_queries=200, eps=radius, seed=0, resc_schedule=True)
    theirs = fooled(model, peer.perturb(x, y), y)
    ours = fooled(model, square(Oracle(model), x, y, ball=Ball(norm, radius), queries=200), y)
    assert 0 < theirs.sum() < len(x), "the radius must separate rows, or this compares nothing"
    assert ours.sum() >= theirs.sum() - 3


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("rescale", [True, False])
def test_asking_ahead_is_the_same_search(channels: int, rescale: bool) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(2)
        model = SmallCNN(channels=channels, side=8, classes=5, width=4).double().eval()
    for parameter in model.parameters():
        parameter.data *= 3
    x = torch.rand(10, channels, 8, 8, generator=torch.Generator().manual_seed(4)).double()
    y = model(x).argmax(1)
    ball = Ball("linf", 0.04)
    one, many = Oracle(model, "logits"), Oracle(model, "logits")
    slow = square(one, x, y, ball=ball, queries=300, rescale=rescale)
    fast = square(many, x, y, ball=ball, queries=300, rescale=rescale, ahead=8)
    # a pixel that the model does not see may be kept or not by the last bit of a margin: the margins are the same
    assert torch.allclose(model(slow), model(fast), atol=1e-9)
    assert 0 < int((model(slow).argmax(1) != y).sum()) < len(x)
    assert one.asked <= 300 * len(x)
