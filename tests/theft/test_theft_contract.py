"""What every thief and every guard promises, over whatever the file tree holds: a new one is held to it too."""

from __future__ import annotations

import copy
from functools import partial
from typing import Any

import pytest
import torch
from stolen_worlds import CLASSES, agreement, net, quick, rows, victim
from torch import Tensor, nn

from buckler.catalog import cards, find
from buckler.kinds import Adaptive
from buckler.method import describe
from buckler.target import Oracle

THIEVES = [card.path for card in cards("theft") if card.kind == "extract"]
GUARDS = [card.path for card in cards("theft") if card.kind == "guard"]
NEEDS_SCORES = ["theft/data_free", "theft/equation_solving"]


def thief(path: str, **more: Any) -> Any:
    """With little to do; it still has to give a copy."""
    method = find(path) if path == "theft/data_free" else quick(find(path))
    less: dict[str, Any] = {"most": 400, "batch": 16, "rate": 0.01} if path == "theft/data_free" else {}
    less |= {"rounds": 3} if "rounds" in describe(method).knobs else {}
    needs = {"net": net} if "net" in describe(method).knobs else {}
    return partial(method, **{**less, **needs, **more})


def door(path: str, model: nn.Module, budget: int | None = None) -> Oracle:
    return Oracle(model, "labels" if describe(find(path)).holds == "labels" else "scores", budget)


@pytest.mark.parametrize("path", THIEVES)
@pytest.mark.parametrize("budget", [1, 17, 300])
def test_it_keeps_to_the_budget_and_gives_a_copy(path: str, budget: int) -> None:
    oracle = door(path, victim(), budget)
    made = thief(path)(oracle, rows(60))
    assert oracle.asked <= budget
    assert oracle.asked >= min(budget, 60) - (budget % 16 if path == "theft/data_free" else 0)
    assert made(rows(4, 2)).shape == (4, CLASSES)
    assert made(rows(4, 2)).isfinite().all()
    assert not made.training


@pytest.mark.parametrize("path", [path for path in THIEVES if path != "theft/equation_solving"])
def test_without_an_answer_it_gives_the_network_as_it_begins(path: str) -> None:
    oracle = door(path, victim(), 0)
    made = thief(path)(oracle, rows(60))
    assert oracle.asked == 0
    with torch.random.fork_rng():
        torch.manual_seed(0)
        fresh = net()
    assert torch.equal(made.state_dict()["weight"], fresh.state_dict()["weight"])


@pytest.mark.parametrize("path", [path for path in THIEVES if path != "theft/data_free"])
def test_a_copy_agrees_and_a_copy_of_another_victim_does_not(path: str) -> None:
    made = thief(path)(door(path, victim(), 200), rows(200))
    assert agreement(made, victim()) > 0.85
    assert agreement(made, victim(5)) < 0.6


@pytest.mark.parametrize("path", THIEVES)
def test_the_seed_decides_and_nothing_else_is_touched(path: str) -> None:
    model, pool = victim(), rows(60)
    state, before, kept = torch.random.get_rng_state(), copy.deepcopy(model.state_dict()), pool.clone()
    few = {"spare": 20.0} if path == "theft/equation_solving" else {}  # so that noise is drawn
    made = [thief(path, seed=seed, **few)(door(path, model, 100), pool) for seed in (0, 0, 1)]
    assert torch.equal(state, torch.random.get_rng_state())
    assert torch.equal(pool, kept)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    first, second, other = ([*one.state_dict().values()][0] for one in made)
    assert torch.equal(first, second)
    assert not torch.equal(first, other)


@pytest.mark.parametrize("path", THIEVES)
def test_an_empty_pool_is_refused(path: str) -> None:
    with pytest.raises(ValueError, match="row in the pool"):
        thief(path)(door(path, victim()), rows(0))


@pytest.mark.parametrize("path", NEEDS_SCORES)
def test_labels_are_too_little_for_some(path: str) -> None:
    with pytest.raises(ValueError, match="reveals scores"):
        thief(path)(Oracle(victim(), "labels"), rows(60))


@pytest.mark.parametrize("path", [path for path in THIEVES if path not in NEEDS_SCORES])
@pytest.mark.parametrize("reveals", ["labels", "logits"])
def test_others_take_what_they_are_told(path: str, reveals: Any) -> None:
    made = thief(path)(Oracle(victim(), reveals), rows(120))
    assert agreement(made, victim()) > 0.8


# ------------------------------------------------------------------------------------------------ guards


@pytest.mark.parametrize("path", GUARDS)
def test_a_guard_answers_with_scores_and_hides_nothing_from_an_adaptive_attack(path: str) -> None:
    model, x = victim(steep=20.0), rows(50)
    before: Tensor = model(x).detach()
    guarded = find(path)(model)
    scores = guarded(x).softmax(1)
    assert scores.isfinite().all()
    torch.testing.assert_close(scores.sum(1), torch.ones(50))
    assert float((scores.argmax(1) == before.argmax(1)).float().mean()) > 0.85
    assert not torch.allclose(scores, before.softmax(1), atol=1e-3)
    assert isinstance(guarded, Adaptive)
    assert torch.equal(guarded.surrogate()(x), before)
    assert torch.equal(model(x), before)


@pytest.mark.parametrize("path", GUARDS)
def test_scores_that_are_sure_to_the_last_bit_are_guarded_too(path: str) -> None:
    scores = find(path)(victim(steep=500.0))(rows(50)).softmax(1)
    assert scores.isfinite().all()
    assert float((scores.argmax(1) == victim(steep=500.0)(rows(50)).argmax(1)).float().mean()) > 0.7
