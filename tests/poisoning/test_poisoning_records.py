"""What the evaluator records of a run: what it cost, what was asked, and which threat it was."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
from problems import net, pixel, stripes, subject
from torch import nn

from buckler.data import Poisoned, Rows
from buckler.kinds import Cultivated, Repaired, Suspicion
from buckler.poisoning.evaluate import evaluate
from buckler.poisoning.fine_tune import fine_tune
from buckler.threat import Share
from buckler.train import fit, started

WHOLE = Share(1.0)


def sized(data: Rows, *, share: Share, size: int = 1, seed: int = 0) -> Poisoned:
    """`pixel` with a knob that a trial is to record."""
    del size
    return pixel(data, share=share, seed=seed)


def greedy(data: Rows, *, share: Share = WHOLE, seed: int = 0) -> Poisoned:
    """An attack that by itself asks for all rows."""
    x, y = data
    rows = torch.arange(len(y)) < share.of(len(y))
    return Poisoned(x, torch.where(rows, (y + 1) % 3, y), rows, y)


def keep(model: nn.Module, clean: Rows, *, seed: int = 0) -> Repaired:
    del clean, seed
    return model


@pytest.mark.parametrize("wrapped", [False, True])
def test_the_cost_of_a_repair_is_counted_and_its_model_is_left_as_it_is(wrapped: bool) -> None:
    kept: list[nn.Module] = []

    def tuned(model: nn.Module, clean: Rows, *, epochs: float = 1, seed: int = 0) -> Repaired:
        made = fine_tune(model, clean, epochs=epochs, seed=seed)
        kept.append(nn.Sequential(made, nn.Identity()) if wrapped else made)
        return kept[-1]

    whole = subject()
    once, often = (
        evaluate(partial(tuned, epochs=epochs), whole, attack=pixel, share=Share(0.1), rows=100, clean_rows=40).cost
        for epochs in (1, 5)
    )
    assert (once.backwards, often.backwards) == (40, 200)
    assert often.forwards - once.forwards == 160
    assert not any(part._forward_hooks for model in (*kept, whole.model) for part in model.modules())
    assert 0 < often.method_seconds < often.seconds


def test_the_seconds_of_a_method_are_without_the_undefended_training() -> None:
    cost = evaluate(keep, subject(), attack=pixel, share=Share(0.1), rows=50).cost
    assert cost.method_seconds < 0.1 * cost.seconds


def test_networks_that_a_method_makes_are_counted() -> None:
    def grow(data: Rows, *, net: Callable[[], nn.Module], epochs: float = 1, seed: int = 0) -> Cultivated:
        return Cultivated(fit(started(net, seed), data, epochs=epochs))

    costs = [evaluate(partial(grow, epochs=epochs), subject(), rows=100).cost for epochs in (1, 3)]
    assert [cost.backwards for cost in costs] == [300, 900]


def test_progress_is_told_while_a_method_works() -> None:
    told: list[tuple[float, int]] = []
    subject_ = subject(recipe=None)
    evaluate(partial(fine_tune, epochs=4, batch=20), subject_, attack=pixel, share=Share(0.1), rows=50, clean_rows=40,
             training_epochs=30, tick=lambda share, forwards: told.append((share, forwards)))  # fmt: skip
    assert told == sorted(told)
    shares = [share for share, _ in told]
    assert any(0 < share < 0.5 for share in shares), "the training before it tells how far it is"
    assert len({forwards for share, forwards in told if share == 0.5}) >= 8, "and so does every batch of the method"


def test_a_configured_attack_is_another_threat() -> None:
    plain, one, five = (
        evaluate(keep, subject(), attack=attack, share=Share(0.1), rows=30)
        for attack in (partial(sized), partial(sized, size=1), partial(sized, size=5))
    )
    path = f"{sized.__module__}:sized"
    assert plain.params["attack"] == path
    assert one.params["attack"] == {"method": path, "size": 1}
    assert five.params["attack"] == {"method": path, "size": 5}
    assert one.threat != five.threat != plain.threat
    assert five.threat.wants == f"what {path} (size 5) teaches"
    alone = evaluate(partial(sized, size=5), subject(), share=Share(0.1), rows=30)
    assert alone.threat == five.threat, "the attack that a defence was tried against is the attack alone"


def test_a_share_needs_an_attack_and_an_attack_touches_training_data() -> None:
    with pytest.raises(ValueError, match="expected an attack that touches 10% of the rows, got none"):
        evaluate(keep, subject(), share=Share(0.1))
    with pytest.raises(ValueError, match="expected an attack on training data, got .*keep, which is none"):
        evaluate(keep, subject(), attack=keep)
    with pytest.raises(ValueError, match="expected no attack beside it"):
        evaluate(pixel, subject(), attack=pixel)


@pytest.mark.parametrize(
    ("attack", "share", "expected"),
    [
        (greedy, None, "100%"),
        (partial(greedy, share=Share(0.2)), None, "20%"),
        (greedy, Share(0.3), "30%"),
        (pixel, None, "5%"),
    ],
)
def test_an_attack_has_the_share_that_it_asks_for(attack, share: Share | None, expected: str) -> None:
    for trial in (
        evaluate(attack, subject(), share=share, rows=30),
        evaluate(keep, subject(), attack=attack, share=share, rows=30),
    ):
        assert trial.params["share"] == expected
        assert trial.threat.within == f"{expected} of the training rows"
    assert int(evaluate(attack, subject(), share=share, rows=30).evidence["touched"].sum()) == {
        "100%": 300, "20%": 60, "30%": 90, "5%": 15,
    }[expected]  # fmt: skip


def test_a_seed_of_the_methods_own_is_kept_and_the_one_that_ran_is_recorded() -> None:
    seeds: list[int] = []

    def seeded(model: nn.Module, clean: Rows, *, seed: int = 0) -> Repaired:
        del clean
        seeds.append(seed)
        return model

    trials = [evaluate(method, subject(), rows=30, seed=3) for method in (seeded, partial(seeded, seed=0))]
    assert seeds == [3, 0]
    assert [trial.params["seed"] for trial in trials] == [3, 0]


def test_clean_rows_that_were_given_are_recorded_and_training_is_given_none() -> None:
    given: list[int] = []

    def sift(model: nn.Module, data: Rows, *, clean: Rows | None = None) -> Suspicion:
        del model
        given.append(0 if clean is None else len(clean[1]))
        return Suspicion(torch.zeros(len(data[1])), torch.zeros(len(data[1]), dtype=torch.bool))

    def grow(data: Rows, *, net: Callable[[], nn.Module], clean: Rows | None = None) -> Cultivated:
        del data
        given.append(0 if clean is None else len(clean[1]))
        return Cultivated(net())

    asked = [sift, grow, partial(grow, clean=stripes(9))]
    trials = [evaluate(method, subject(), rows=30, clean_rows=40) for method in asked]
    assert given == [40, 0, 9]
    assert [trial.params["clean"] for trial in trials[:2]] == ["40 rows", None]


def test_rows_that_a_recipe_or_a_method_writes_to_are_its_own() -> None:
    def spoils(data: Rows) -> nn.Module:
        model = fit(started(net, 0), data, epochs=30, batch=32)
        data[0].zero_()
        data[1].zero_()
        return model

    def scribble(model: nn.Module, data: Rows) -> Suspicion:
        del model
        score = data[0][:, 0, -1, -1].clone()
        data[0].zero_()
        data[1].zero_()
        return Suspicion(score, score > 0.9)

    whole = subject(recipe=spoils)
    trial = evaluate(pixel, whole, share=Share(0.1), rows=100)
    assert trial.estimates["control_accuracy"].value > 0.95, "the second training has the rows of the first"
    assert evaluate(scribble, whole, rows=30).evidence["label"].unique().tolist() == [0, 1, 2]
