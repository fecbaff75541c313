"""What every inference of membership promises, over whatever the file tree holds: a new one is held to it too."""

from __future__ import annotations

import copy
from functools import partial
from typing import Any

import pytest
import torch
from membership_worlds import by_heart, noise
from torch import Tensor, nn

from buckler import stats
from buckler.catalog import cards, find
from buckler.method import describe, held
from buckler.privacy._farm import farm, halves
from buckler.privacy._shadows import Shadows

METHODS = [card.path for card in cards("privacy") if card.kind == "infer"]
LESS = {"queries": 12, "epochs": 4}
World = tuple[nn.Module, Tensor, Tensor, Tensor, Shadows]


@pytest.fixture(scope="module")
def world() -> World:
    """A model that learnt half of some rows by heart, and four shadows."""
    x, y = noise(120)
    member = halves(120, 2, 7)[0]
    model = by_heart((x[member], y[member]))
    model.zero_grad()
    return model, x, y, member, farm(by_heart, (x, y), halves(120, 4))


def called(path: str, model: nn.Module, x: Tensor, y: Tensor, shadows: Shadows) -> Tensor:
    method = find(path)
    described = describe(method)
    less = {name: value for name, value in LESS.items() if name in described.knobs}
    given: dict[str, Any] = {"shadows": shadows, "public": noise(60, seed=3)}
    more = {name: value for name, value in given.items() if name in described.knobs}
    return partial(method, **less)(held(described.holds, model), x, y, **more)


@pytest.mark.parametrize("path", METHODS)
def test_members_have_the_higher_scores(path: str, world: World) -> None:
    model, x, y, member, shadows = world
    scores = called(path, model, x, y, shadows)
    assert scores.shape == (120,)
    assert bool(scores.isfinite().all())
    assert stats.area(torch.stack([scores, member.double()], 1), "r").low > 0.5


@pytest.mark.parametrize("path", METHODS)
def test_a_model_that_learnt_from_other_rows_gives_nobody_away(path: str, world: World) -> None:
    _, x, y, member, shadows = world
    scores = called(path, by_heart(noise(60, seed=9)), x, y, shadows)
    estimate = stats.area(torch.stack([scores, member.double()], 1), "r", 0.999)
    assert estimate.low <= 0.5 <= estimate.high


@pytest.mark.parametrize("path", METHODS)
def test_it_leaves_the_model_the_rows_and_the_global_random_state_alone(path: str, world: World) -> None:
    model, x, y, _, shadows = world
    before, state, rows, labels = copy.deepcopy(model.state_dict()), torch.random.get_rng_state(), x.clone(), y.clone()
    first, second = (called(path, model, x, y, shadows) for _ in range(2))
    assert torch.equal(first, second)
    assert torch.equal(state, torch.random.get_rng_state())
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
    assert torch.equal(x, rows)
    assert torch.equal(y, labels)


@pytest.mark.parametrize("path", [path for path in METHODS if path != "privacy/shadow"])
def test_a_row_s_score_does_not_depend_on_its_place(path: str, world: World) -> None:
    """Of `shadow` it does: its network learns from the rows in their order."""
    model, x, y, _, shadows = world
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    scores = called(path, model, x, y, shadows)
    moved = called(path, model, x[order], y[order], shadows.rows(order))
    assert torch.allclose(moved, scores[order], atol=1e-6)


def test_every_method_is_here() -> None:
    expected = {"entropy", "label_only", "lira", "loss_threshold", "quantile", "rmia", "shadow"}
    assert expected <= {path.partition("/")[2] for path in METHODS}
