"""The evaluator: what it measures against a problem with a known answer, and what it keeps from defences."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest
import torch
from problems import net, pixel, stamp, stripes, subject, told
from torch import nn

from buckler.data import Poisoned, Rows
from buckler.kinds import Cultivated, Repaired, Suspicion
from buckler.poisoning import _measure
from buckler.poisoning.evaluate import evaluate
from buckler.stats import agree, recompute
from buckler.threat import Share
from buckler.trial import load, save

ATTACK = partial(pixel)
PREFIXES = ("undefended_", "")


def grow(data: Rows, *, net: object, seed: int = 0) -> Cultivated:
    return told(data, net=net, seed=seed)


def keep(model: nn.Module, clean: Rows) -> Repaired:
    """A repair that does nothing."""
    del clean
    return model


def blank(model: nn.Module, clean: Rows) -> Repaired:
    """A repair that destroys the model."""
    del clean
    return nn.Sequential(model, nn.Linear(3, 3)).requires_grad_(False).apply(_zeroed)


def _zeroed(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        module.weight.zero_()


def test_a_backdoor_is_measured_beside_a_clean_control() -> None:
    trial = evaluate(ATTACK, subject(), share=Share(0.1), rows=150)
    assert trial.status == "ok"
    assert trial.estimates["attack_success"].value > 0.9
    assert trial.estimates["control_attack_success"].value < 0.1
    assert trial.estimates["attack_success"].n == 100, "test rows of the target class are left out"
    assert trial.estimates["recovered_accuracy"].value < 0.1
    assert trial.estimates["accuracy"].value > 0.95
    assert trial.threat.changes == "training data"
    assert int(trial.evidence["touched"].sum()) == 30


def test_every_estimate_can_be_computed_again_from_a_saved_trial(tmp_path) -> None:
    trial = replace(evaluate(grow, subject(), attack=ATTACK, share=Share(0.1), rows=150), fingerprint="x")
    save(trial, tmp_path / "t")
    again = load(tmp_path / "t")
    assert set(again.estimates) == set(trial.estimates)
    assert all(agree(recompute(e, again.evidence), trial.estimates[name]) for name, e in again.estimates.items())
    assert {"separation", "effectiveness"} <= set(again.estimates)


def test_a_cultivator_that_is_right_is_measured_as_such() -> None:
    trial = evaluate(grow, subject(), attack=ATTACK, share=Share(0.1), rows=150)
    found = trial.estimates
    assert found["undefended_attack_success"].value > 0.9
    assert found["attack_success"].value < 0.1
    assert found["attack_success_change"].high < 0
    both = [{name: found[prefix + name].value for name in ("accuracy", "attack_success")} for prefix in PREFIXES]
    assert found["effectiveness"].value == pytest.approx(_measure.effectiveness(*both))
    assert found["effectiveness"].low > 0.8
    assert found["precision"].value == found["recall"].value == found["separation"].value == 1.0
    assert found["false_alarms"].value == 0.0
    assert trial.evidence["dynamics_loss"].shape == (300, 2)
    assert all(check.passed for check in trial.checks)


def test_a_defence_that_does_nothing_or_destroys_gets_no_credit() -> None:
    idle = evaluate(keep, subject(), attack=ATTACK, share=Share(0.1), rows=100)
    assert idle.estimates["attack_success_change"].value == 0.0
    assert idle.estimates["effectiveness"].low < idle.estimates["effectiveness"].value == 0.5
    harm = evaluate(blank, subject(), attack=ATTACK, share=Share(0.1), rows=100)
    assert [check.name for check in harm.checks if not check.passed] == ["the defence is harmless"]
    assert harm.estimates["accuracy_change"].value < -0.3


def test_an_attack_that_does_not_work_proves_no_defence() -> None:
    def nothing(data: Rows, *, share: Share, seed: int = 0) -> Poisoned:
        x, y = data
        rows = torch.arange(len(y)) < share.of(len(y))
        return Poisoned(x, y, rows, y, stamp, lambda labels: torch.zeros_like(labels))

    trial = evaluate(keep, subject(), attack=nothing, share=Share(0.1), rows=100)
    assert trial.status == "inconclusive"
    assert "does not work" in trial.reason


@pytest.mark.parametrize("secret", ["rows", "trigger", "original", "wanted"])
def test_a_defence_that_asks_for_ground_truth_fails(secret: str) -> None:
    def spy(data: Rows, *, net: object) -> Cultivated:
        del net
        return Cultivated(getattr(data, secret))

    with pytest.raises(AttributeError):
        evaluate(spy, subject(), attack=ATTACK, share=Share(0.1), rows=50)


def test_a_defence_is_given_no_row_that_it_is_measured_on() -> None:
    seen: list[torch.Tensor] = []

    def nosy(model: nn.Module, clean: Rows) -> Repaired:
        seen.append(clean[0])
        return model

    whole = subject()
    trial = evaluate(nosy, whole, attack=ATTACK, share=Share(0.1), rows=140, clean_rows=40)
    measured = {row.numpy().tobytes() for row in whole.test[0][: len(trial.evidence["correct"])]}
    assert len(seen[0]) == 40
    assert len(measured) == 110
    assert not measured & {row.numpy().tobytes() for row in seen[0]}


def test_sifting_the_data_as_it_is_knows_no_ground_truth() -> None:
    def bright(model: nn.Module, data: Rows) -> Suspicion:
        del model
        score = data[0][:, 0, -1, -1]
        return Suspicion(score, score > 0.9)

    trial = evaluate(bright, subject(), rows=50, train_rows=100)
    assert set(trial.estimates) == {"flagged"}
    assert trial.evidence["row"].tolist() == sorted(trial.evidence["row"].tolist())
    assert len(trial.evidence["suspicion"]) == 100


def test_a_sifter_that_returns_nonsense_is_refused() -> None:
    def short(model: nn.Module, data: Rows) -> Suspicion:
        return Suspicion(torch.zeros(3), torch.zeros(3, dtype=torch.bool))

    def lost(model: nn.Module, data: Rows) -> Suspicion:
        many = len(data[1])
        return Suspicion(torch.full((many,), torch.nan), torch.zeros(many, dtype=torch.bool))

    for method, says in ((short, r"expected score \(300,\)"), (lost, "expected finite scores")):
        with pytest.raises(ValueError, match=says):
            evaluate(method, subject(), rows=50)


def test_what_the_subject_does_not_admit_is_skipped_with_a_reason() -> None:
    whole = subject()
    for given, says in (
        ({"train": None}, "give the subject its `train`"),
        ({"recipe": None, "net": None}, "give the subject its `recipe` or its `net`"),
    ):
        trial = evaluate(ATTACK, replace(whole, **given), share=Share(0.1), rows=50)
        assert trial.status == "skipped"
        assert says in trial.reason
    assert evaluate(grow, replace(whole, net=None), rows=50).reason.endswith("give the subject its `net`")


def test_a_recipe_that_returns_no_model_is_one_sentence() -> None:
    with pytest.raises(ValueError, match="recipe: expected a function that returns a trained nn.Module, got str"):
        evaluate(ATTACK, subject(recipe=lambda data: "model"), share=Share(0.1), rows=50)


def test_a_net_stands_in_for_a_recipe() -> None:
    trial = evaluate(ATTACK, subject(recipe=None), share=Share(0.1), rows=100, training_epochs=100)
    assert trial.estimates["attack_success"].value > 0.9


def test_covers_are_neither_right_nor_wrong() -> None:
    many = torch.arange(10)
    held = Poisoned(torch.zeros(10, 1, 2, 2), many, many < 6, many, covers=(many >= 3) & (many < 6))
    found = _measure.isolation(Suspicion(-many.float(), (many > 0) & (many < 8)), held)[1]
    assert (found["precision"].value, found["precision"].n) == (0.5, 4), "two poisoned and two clean rows are flagged"
    assert (found["recall"].value, found["false_alarms"].value) == (pytest.approx(2 / 3), 0.5)
    assert (found["separation"].value, found["separation"].n) == (1.0, 7)


@pytest.mark.parametrize(
    ("before", "after", "rating"),
    [
        ((0.9, 1.0), (0.9, 0.0), 1.0),
        ((0.9, 1.0), (0.9, 1.0), 0.5),
        ((0.9, 1.0), (0.4, 0.0), 0.75),
        ((0.9, 0.5), (0.95, 0.6), 0.5),
    ],
)
def test_the_effectiveness_rating_subtracts_lost_accuracy(before, after, rating) -> None:
    named = [{"accuracy": a, "attack_success": s} for a, s in (before, after)]
    assert _measure.effectiveness(*named) == pytest.approx(rating)


def test_eight_bit_data_is_attacked_with_eight_bit_images() -> None:
    x = (stripes(9)[0] * 255).to(torch.uint8)
    y = torch.arange(9) % 3
    held = Poisoned(x, y, y == 9, y, lambda images: images * 0.333, lambda labels: labels * 0)
    moved = _measure.triggered(x.float() / 255, held)
    assert torch.equal(moved, (moved * 255).round() / 255)
    assert net()(moved).shape == (9, 3)
