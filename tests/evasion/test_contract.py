"""What every attack of the area promises, checked on models whose answers are known exactly.

The tests run over whatever the file tree holds: a new attack is covered by being there.
"""

from __future__ import annotations

import copy
import inspect
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from buckler.catalog import cards, find
from buckler.method import Described, describe
from buckler.nets import LinearModel
from buckler.target import Oracle
from buckler.threat import NORMS, Ball

ATTACKS = [card.path for card in cards() if card.path.startswith("evasion/") and card.kind == "evade"]
# Fewer steps where the published budget would take minutes; on a linear model they are plenty.
LESS = {"steps": 40, "queries": 400}
# One step in the direction of the loss's gradient goes towards the softmax-weighted class, not the nearest one.
ONE_STEP = {"evasion/fgsm", "evasion/mi_fgsm"}
GUESSING = {"evasion/square", "evasion/hop_skip_jump"}


def _problem(rows: int = 12, classes: int = 2) -> tuple[LinearModel, Tensor, Tensor]:
    draw = torch.Generator().manual_seed(7)
    model = LinearModel(torch.randn(classes, 36, generator=draw), 0.1 * torch.randn(classes, generator=draw))
    x = torch.rand(rows, 1, 6, 6, generator=draw) * 0.3 + 0.35
    return model, x, model(x).argmax(1)


def _configured(path: str) -> tuple[Any, Described]:
    method = find(path)
    described = describe(method)
    less = {key: value for key, value in LESS.items() if isinstance(described.params.get(key), int)}
    less = {key: value for key, value in less.items() if value < described.params[key]}
    return partial(method, **less) if less else method, described


def _call(path: str, model: LinearModel, x: Tensor, y: Tensor, ball: Ball, **more: Any) -> Tensor:
    method, described = _configured(path)
    target = model if described.holds == "model" else Oracle(model, described.holds)  # pyright: ignore
    return method(target, x, y, ball=ball, **more)


def _supports(path: str, norm: str) -> bool:
    model, x, y = _problem(1)
    try:
        _call(path, model, x, y, Ball(norm, 0.01 if norm != "l0" else 1))  # pyright: ignore
    except ValueError as error:
        if norm not in str(error):
            raise
        return False
    return True


CASES = [(path, norm) for path in ATTACKS for norm in NORMS if norm != "l0" and _supports(path, norm)]


def _factor(path: str) -> float:
    return 2.0 if path in GUESSING else 1.3


@pytest.mark.parametrize(("path", "norm"), CASES)
def test_succeeds_beyond_the_distance_and_not_inside_it(path: str, norm: str) -> None:
    model, x, y = _problem()
    distance = model.distances(x, y, norm)
    far = Ball(norm, _factor(path) * distance)  # pyright: ignore
    moved = _call(path, model, x, y, far)
    assert far.contains(x, moved).all()
    assert (model(moved).argmax(1) != y).float().mean() >= 0.9
    near = Ball(norm, 0.5 * distance)  # pyright: ignore
    moved = _call(path, model, x, y, near)
    within = near.contains(x, moved)
    assert not ((model(moved).argmax(1) != y) & within).any()


@pytest.mark.parametrize(("path", "norm"), CASES)
def test_output_is_legal_or_beyond_the_limit_only_for_minimum_norm_attacks(path: str, norm: str) -> None:
    model, x, y = _problem(classes=5)
    x = (x * 3 - 1).clamp(0, 1)
    y = model(x).argmax(1)
    moved = _call(path, model, x, y, Ball(norm, 0.2))  # pyright: ignore
    assert moved.shape == x.shape
    assert moved.isfinite().all()
    assert bool(((moved >= 0) & (moved <= 1)).all())


@pytest.mark.parametrize("path", ATTACKS)
def test_leaves_the_model_the_rows_and_the_global_random_state_alone(path: str) -> None:
    model, x, y = _problem(4)
    model.train()
    before, state = copy.deepcopy(model.state_dict()), torch.random.get_rng_state()
    rows, labels = x.clone(), y.clone()
    norm = next(norm for name, norm in CASES if name == path)
    _call(path, model, x, y, Ball(norm, 0.1))  # pyright: ignore
    assert model.training
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert torch.equal(x, rows)
    assert torch.equal(y, labels)
    assert not x.requires_grad
    assert torch.equal(state, torch.random.get_rng_state())


@pytest.mark.parametrize(("path", "norm"), CASES)
def test_same_seed_same_answer_whatever_the_batch(path: str, norm: str) -> None:
    model, x, y = _problem(6, classes=4)
    model = model.double()
    x = x.double()
    y = model(x).argmax(1)
    ball = Ball(norm, 0.6 * model.distances(x, y, norm))  # pyright: ignore
    whole = _call(path, model, x, y, ball)
    again = _call(path, model, x, y, ball)
    assert torch.equal(whole, again)
    picked = torch.tensor([4, 1])
    alone = _call(path, model, x[picked], y[picked], ball.rows(picked))
    assert torch.allclose(alone, whole[picked], atol=1e-9)


@pytest.mark.parametrize("path", [p for p in ATTACKS if describe(find(p)).holds != "model"])
def test_never_asks_more_than_the_oracle_allows(path: str) -> None:
    model, x, y = _problem(5)
    method, described = _configured(path)
    norm = next(norm for name, norm in CASES if name == path)
    for allowed in (0, 7, 60):
        oracle = Oracle(model, described.holds, budget=allowed)  # pyright: ignore
        moved = method(oracle, x, y, ball=Ball(norm, 0.1))  # pyright: ignore
        assert moved.shape == x.shape
        assert oracle.asked <= allowed


@pytest.mark.parametrize("path", [p for p in ATTACKS if "goal" in describe(find(p)).knobs])
def test_a_goal_is_reached_or_nothing(path: str) -> None:
    model, x, y = _problem(8, classes=3)
    goal = (y + 1) % 3
    norm = next(norm for name, norm in CASES if name == path)
    gap = model.weight.detach()[goal] - model.weight.detach()[y]
    dual = {"linf": gap.abs().sum(1), "l2": gap.norm(dim=1), "l1": gap.abs().amax(1)}[norm]
    logits = model(x).detach()
    needed = (logits.gather(1, y[:, None]) - logits.gather(1, goal[:, None])).squeeze(1) / dual
    keep = (needed > 0) & (needed < 0.2)
    x, y, goal, needed = x[keep], y[keep], goal[keep], needed[keep]
    ball = Ball(norm, 3 * needed)  # pyright: ignore
    moved = _call(path, model, x, y, ball, goal=goal)
    reached = model(moved).argmax(1) == goal
    assert reached.float().mean() >= (0.5 if path in GUESSING | ONE_STEP else 0.9)


@pytest.mark.parametrize("path", ATTACKS)
def test_an_empty_radius_changes_no_answer(path: str) -> None:
    model, x, y = _problem(3)
    norm = next(norm for name, norm in CASES if name == path)
    ball = Ball(norm, 0.0)  # pyright: ignore
    moved = _call(path, model, x, y, ball)
    assert not ((model(moved).argmax(1) != y) & ball.contains(x, moved)).any()


def test_every_attack_is_here() -> None:
    assert {"evasion/pgd", "evasion/autoattack", "evasion/hop_skip_jump"} <= set(ATTACKS)
    for path in ATTACKS:
        assert "ball" in inspect.signature(find(path)).parameters
        assert any(name == path for name, _ in CASES), f"{path} supports no norm of the contract"
