"""What the trials of the area add up to: who may vouch for rows that stand, and what no finding may rest on."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from buckler import stats
from buckler.evasion.judge import judge
from buckler.findings import Finding, Report, Severity, Verdicts, rules, verdict
from buckler.threat import Threat
from buckler.trial import Check, State, Trial

ROWS = 400


def made(
    method: str = "evasion/pgd",
    ball: str = "linf:0.1",
    fall: float = 0.0,
    *,
    kind: str = "evade",
    status: State = "ok",
    checks: tuple[Check, ...] = (),
    rows: int = ROWS,
    **params: object,
) -> Trial:
    """A trial in which the first share `fall` of rows fell, at half the limit, and every row was right."""
    fell = torch.arange(rows) < fall * ROWS
    evidence = {
        "label": torch.arange(rows) % 3,
        "correct": torch.ones(rows, dtype=torch.bool),
        "robust": ~fell,
        "distance": torch.where(fell, 0.05, math.inf),
        "gained": torch.ones(rows, dtype=torch.int8),
    }
    return Trial(
        method=method,
        kind=kind,
        params={"ball": ball, "rows": rows, **params},
        threat=Threat("weights", "input", ball, "any wrong label"),
        subject={"name": "m", "model": "a", "data": "b"},
        seed=0,
        status=status,
        reason=next((c.says for c in checks if not c.passed), "" if status == "ok" else "it raised."),
        checks=checks,
        estimates={
            "clean_accuracy": stats.share(evidence["correct"], "correct"),
            "robust_accuracy": stats.share(evidence["robust"], "robust"),
            "robustness_gained": stats.difference(evidence["gained"], "gained"),
            "clean_accuracy_change": stats.difference(evidence["gained"], "gained"),
        },
        evidence=evidence,
    )


def judged(*trials: Trial) -> Verdicts:
    return judge(trials, {"linf": 0.1}, rules(), "buckler run {method}")


def white(*trials: Trial) -> Finding:
    return next(f for f in judged(*trials).findings if f.id == "evasion/white-box/linf")


def outcome(*trials: Trial) -> str:
    found = judged(*trials)
    return verdict(Report(name="m", created="now", subject={}, findings=found.findings)).outcome


def doubted(name: str = "binarization", fall: float = 0.0) -> Trial:
    return made(fall=fall, status="inconclusive", checks=(Check(name, False, f"{name} fails.", 1.0),))


def test_a_sound_attack_at_the_limit_vouches() -> None:
    assert white(made()).state == "clear"
    assert white(made(ball="linf:inf")).state == "clear"
    assert outcome(made()) == "pass"


@pytest.mark.parametrize("ball", ["linf:0.01", "linf:0.3"])
def test_an_attack_at_another_radius_vouches_for_nothing(ball: str) -> None:
    assert white(made(ball=ball)).state == "not measured"
    assert "linf:0.1" in white(made(ball=ball)).claim
    assert outcome(made(ball=ball)) == "not measured"
    # what it found counts all the same
    assert white(made(ball=ball, fall=0.5), made()).estimates["robust accuracy"].value == 0.5


def test_a_trial_whose_doubts_were_not_looked_at_vouches_for_nothing() -> None:
    assert white(made(doubt=False)).state == "not measured"
    assert white(made(doubt=False), made()).state == "clear"


def test_a_doubt_stands_until_a_trial_that_was_asked_the_same_passed() -> None:
    blind = made("evasion/fgsm")
    asked = made("evasion/autoattack", checks=(Check("binarization", True, "found", 0.0),))
    unsure = made("evasion/autoattack", checks=(Check("binarization", True, "could not tell", None),))
    assert white(doubted(), blind).state == "not measured"
    assert white(doubted(), unsure).state == "not measured"
    assert white(doubted(), asked).state == "clear"


def test_a_trial_that_missed_what_a_doubted_one_found_does_not_vouch() -> None:
    asked = made("evasion/autoattack", checks=(Check("binarization", True, "found", 0.0),))
    assert white(doubted(fall=0.05), asked).state == "not measured"


def test_the_figure_is_on_the_rows_that_a_believed_trial_saw() -> None:
    few = made(rows=100, checks=(Check("binarization", True, "found", 0.0),))
    assert white(doubted(), few).estimates["robust accuracy"].n == 100
    assert white(made(), few).estimates["robust accuracy"].n == ROWS


def test_nothing_passes_on_an_inconclusive_attack_and_a_probe() -> None:
    probe = replace(made("evasion/gradient_norm", kind="probe"), estimates={"x": stats.median(torch.ones(9), "x")})
    probe = replace(probe, evidence={"x": torch.ones(9)})
    assert outcome(doubted(), probe) == "not measured"
    assert outcome(probe) == "not measured"


def test_few_rows_of_which_none_fell_are_neither_a_pass_nor_a_finding() -> None:
    assert white(made(rows=5)).state == "not measured"
    assert "too few" in white(made(rows=5)).claim
    assert outcome(made(rows=5)) == "not measured"
    assert white(made(rows=5, fall=4 / ROWS)).severity >= Severity.high


def test_an_inconclusive_defence_is_no_remedy() -> None:
    guard = made("evasion/jpeg", kind="guard", status="inconclusive")
    found = judged(made(fall=1.0), guard)
    assert not next(f for f in found.findings if "white-box" in f.id).remedied
    assert any("evasion/jpeg" in item.what for item in found.not_measured)
    assert white(made(fall=1.0), made("evasion/jpeg", kind="guard")).remedied
    assert not white(made(fall=1.0), made("evasion/jpeg", "linf:0.3", kind="guard")).remedied


def test_trials_that_no_finding_rests_on_are_told() -> None:
    found = judged(made(), made(goal=2, fall=0.5), made(ball="l0:3"))
    assert [item.what for item in found.not_measured] == ["evasion/pgd at linf:0.1", "evasion/pgd at l0:3"]
    assert white(made(), made(goal=2, fall=0.5)).estimates["robust accuracy"].value == 1.0


def test_trials_of_other_rows_are_refused() -> None:
    other = made(rows=100)
    other.evidence["label"][0] = 2
    with pytest.raises(ValueError, match="same test rows"):
        judged(made(), other)
