"""The judge: which findings trials become, and what they rest on."""

from __future__ import annotations

from dataclasses import replace
from functools import cache, partial

import pytest
import torch
from problems import pixel, stripes, subject, told
from torch import nn

from buckler.data import Poisoned, Rows
from buckler.findings import Finding, Severity, Verdicts, rules
from buckler.kinds import Anomaly, Cultivated, Suspicion
from buckler.poisoning.evaluate import evaluate
from buckler.poisoning.judge import judge
from buckler.threat import Share
from buckler.trial import Trial

ATTACK = partial(pixel)
TEN = Share(0.1)


def grow(data: Rows, *, net: object, seed: int = 0) -> Cultivated:
    return told(data, net=net, seed=seed)


def bright(model: nn.Module, data: Rows) -> Suspicion:
    del model
    score = data[0][:, 0, -1, -1]
    return Suspicion(score, score > 0.9)


def none(model: nn.Module, clean: Rows) -> Anomaly:
    return Anomaly(torch.tensor([0.1, 0.2, 0.3]), torch.zeros(3, dtype=torch.bool))


def second(model: nn.Module, clean: Rows) -> Anomaly:
    flagged = torch.tensor([False, True, False])
    return Anomaly(torch.tensor([0.1, 9.0, 0.3]), flagged, torch.rand(3, 1, 8, 8), torch.rand(3, 1, 8, 8))


def upside_down(data: Rows, *, share: Share, seed: int = 0) -> Poisoned:
    """An attack on accuracy: other labels on a share of the rows."""
    x, y = data
    rows = torch.arange(len(y)) < share.of(len(y))
    return Poisoned(x, torch.where(rows, (y + 1) % 3, y), rows, y)


@cache
def attacked() -> Trial:
    return evaluate(ATTACK, subject(), share=TEN, rows=150)


@cache
def defended() -> Trial:
    return evaluate(grow, subject(), share=TEN, attack=ATTACK, rows=150)


def judged(*trials: Trial) -> Verdicts:
    named = [replace(trial, fingerprint=f"{index}") for index, trial in enumerate(trials)]
    return judge(named, {}, rules(), "buckler run {method} --demo digits --seed 0")


def finding(verdicts: Verdicts, name: str) -> Finding:
    return next(found for found in verdicts.findings if found.id == name)


def test_a_pipeline_that_learns_a_backdoor_is_a_grave_finding() -> None:
    found = finding(judged(attacked()), "poisoning/pipeline")
    assert found.state == "found"
    assert found.severity >= Severity.high
    assert "10%" in found.claim
    assert found.estimates["attack success"] == attacked().estimates["attack_success"]
    assert {figure.name for figure in found.figures} == {"examples", "attack-success"}
    assert found.reproduce.startswith("buckler run")
    assert "--share 10%" in found.reproduce


def test_a_defence_that_was_tried_is_the_remedy_with_its_figures() -> None:
    verdicts = judged(attacked(), defended())
    found = finding(verdicts, "poisoning/pipeline")
    assert found.remedied["attack success"].value < 0.1
    assert found.remedy_methods == (defended().method,)
    assert "brought attack success from" in finding(verdicts, "poisoning/defences").claim


def test_a_training_that_learns_nothing_false_is_clear() -> None:
    poor = attacked()
    none_won = torch.zeros_like(poor.evidence["success"])
    from buckler import stats

    safe = replace(
        poor,
        evidence={**poor.evidence, "success": none_won},
        estimates={**poor.estimates, "attack_success": stats.share(none_won, "success")},
    )
    found = finding(judged(safe), "poisoning/pipeline")
    assert (found.state, found.severity) == ("clear", Severity.info)


def test_suspicious_rows_are_a_list_to_look_at_and_no_accusation() -> None:
    x, y = stripes(300)
    x[7, 0, -1, -1] = 1.0
    found = finding(judged(evaluate(bright, subject(train=(x, y)), rows=50)), "poisoning/data")
    assert found.severity is Severity.info
    assert found.tables["suspects.csv"].splitlines() == ["row,label,suspicion", f"7,{int(y[7])},1"]
    assert found.figures[0].name == "suspects"
    assert "a proof" in found.claim


def test_dynamics_of_suspected_rows_are_drawn() -> None:
    trial = evaluate(grow, subject(), rows=50)
    names = [figure.name for figure in finding(judged(trial), "poisoning/data").figures]
    assert names == ["suspects", "dynamics"]


@pytest.mark.parametrize(("method", "state"), [(none, "clear"), (second, "found")])
def test_a_model_is_inspected(method, state) -> None:
    found = finding(judged(evaluate(method, subject(), rows=50)), "poisoning/model")
    assert found.state == state
    if state == "found":
        assert found.severity is Severity.high
        assert "flags class 1" in found.claim
        assert found.figures[0].name == "triggers"


def test_lost_accuracy_is_a_finding_of_its_own() -> None:
    found = finding(judged(evaluate(upside_down, subject(), share=Share(0.6), rows=150)), "poisoning/availability")
    assert found.state == "found"
    assert found.estimates["accuracy lost"].value > 0.1


def test_what_was_skipped_is_said() -> None:
    skipped = evaluate(ATTACK, subject(train=None), share=TEN, rows=50)
    verdicts = judged(skipped)
    assert not verdicts.findings
    assert "give the subject its `train`" in verdicts.not_measured[0].why
