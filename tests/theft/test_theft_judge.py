"""What findings say of trials that are made up: found, clear, not measured, and what guards are credited with."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from buckler import stats
from buckler.findings import Severity, Verdicts, rules
from buckler.theft._guarded import HARMLESS
from buckler.theft._stolen import compared
from buckler.theft.judge import judge
from buckler.threat import Threat
from buckler.trial import Check, Trial

ROWS = 400


def flags(share: float, rows: int = ROWS) -> Tensor:
    return torch.arange(rows) < round(share * rows)


def theft(
    fidelity: float, *, control: float = 0.1, rows: int = ROWS, method: str = "theft/knockoff", **params: Any
) -> Trial:
    agreed, by_chance = flags(fidelity, rows), flags(control, rows)
    evidence = {
        "budget": torch.tensor([100, 300]),
        "asked": torch.tensor([100, 250]),
        "correct": flags(0.95, rows),
        "agreed": agreed,
        "copy_correct": flags(0.9 * fidelity, rows),
        "agreed_100": flags(fidelity / 2, rows),
        "copy_correct_100": flags(fidelity / 2, rows),
        "agreed_300": agreed,
        "copy_correct_300": flags(0.9 * fidelity, rows),
        "above_control": agreed.to(torch.int8) - by_chance.to(torch.int8),
    }
    named = {"victim_accuracy": "correct", "fidelity": "agreed", "accuracy": "copy_correct"}
    named |= {f"fidelity_{n}": f"agreed_{n}" for n in (100, 300)} | {
        f"accuracy_{n}": f"copy_correct_{n}" for n in (100, 300)
    }
    found = {name: stats.share(evidence[of], of) for name, of in named.items()}
    found["fidelity_above_control"] = stats.difference(evidence["above_control"], "above_control")
    return Trial(
        method=method,
        kind="extract",
        params={
            "queries": [100, 300],
            "rows": rows,
            "reveals": "scores",
            "pool": "test",
            "train_rows": 10000,
            **params,
        },
        threat=Threat("scores", "nothing", "250 queries", "a copy of the model"),
        subject={"name": "made up"},
        seed=0,
        status="ok",
        estimates=found,
        evidence=evidence,
    )


def guard(
    naive: float, adaptive: float, *, method: str = "theft/rounding", harmless: bool = True, without: float = 0.9
) -> Trial:
    columns = {
        "agreed": naive,
        "agreed_adaptive": adaptive,
        "agreed_undefended": without,
        "correct": 0.95,
        "unguarded_correct": 0.95,
    }
    evidence = {name: flags(share) for name, share in columns.items()}
    before = evidence["agreed_undefended"].to(torch.int8)
    evidence |= {
        "change": evidence["agreed"].to(torch.int8) - before,
        "adaptive_change": evidence["agreed_adaptive"].to(torch.int8) - before,
        "correct_change": torch.zeros(ROWS, dtype=torch.int8),
        "moved": torch.rand(ROWS, generator=torch.Generator().manual_seed(0)),
    }
    named = {"fidelity": "agreed", "fidelity_adaptive": "agreed_adaptive", "fidelity_undefended": "agreed_undefended"}
    named |= {"guarded_accuracy": "correct", "unguarded_accuracy": "unguarded_correct"}
    found = {name: stats.share(evidence[of], of) for name, of in named.items()}
    changes = {
        "fidelity_change": "change",
        "adaptive_fidelity_change": "adaptive_change",
        "accuracy_change": "correct_change",
    }
    found |= {name: stats.difference(evidence[of], of) for name, of in changes.items()}
    found |= {name: stats.mean(evidence["moved"], "moved") for name in ("scores_moved", "brier", "unguarded_brier")}
    made = theft(0.5, method=method)
    checks = (Check(HARMLESS, harmless, "Said."),)
    params = {**made.params, "attack": "theft/knockoff"}
    return replace(made, kind="guard", params=params, estimates=found, evidence=evidence, checks=checks)


def judged(*trials: Trial) -> Verdicts:
    return judge(trials, {}, rules(), "buckler run {method} --demo digits --seed 0")


def test_a_copy_that_agrees_is_found_by_the_best_thief() -> None:
    (found,) = judged(theft(0.7, method="theft/copycat"), theft(0.95)).findings
    assert (found.id, found.state, found.severity) == ("theft/extraction", "found", Severity.high)
    assert "With 250 queries for scores" in found.claim
    assert "theft/knockoff" in found.claim
    assert "95.0%" in found.claim
    assert "theft.agreement" in found.because
    assert [figure.name for figure in found.figures] == ["stolen-fidelity", "stolen-accuracy"]
    assert "95.0% (" in found.figures[0].alt or "95.0% at 250" in found.figures[0].alt
    lines = found.tables["stolen.csv"].splitlines()
    assert len(lines) == 5
    assert lines[-1].startswith('"theft/knockoff",scores,test,250,0.95')
    assert found.reproduce.startswith("buckler run theft/knockoff --demo digits")
    assert "--queries 100,300" in found.reproduce
    assert judged(theft(0.99)).findings[0].severity is Severity.critical


def test_copies_of_different_knobs_have_lines_of_their_own() -> None:
    first, second = theft(0.95, epochs=5), theft(0.9, epochs=30)
    for figure in judged(first, second).findings[0].figures:
        assert "knockoff (epochs 5)" in figure.alt
        assert "knockoff (epochs 30)" in figure.alt


def test_it_is_said_how_many_true_labels_were_learnt() -> None:
    trial = theft(0.95)
    evidence = {**trial.evidence, "agreed_alone": flags(0.6), "taught": torch.tensor([200])}
    alone = {"fidelity_alone": stats.share(flags(0.6), "agreed_alone")}
    (found,) = judged(replace(trial, evidence=evidence, estimates={**trial.estimates, **alone})).findings
    assert "With 250 queries" in found.claim
    assert "taught with the true labels of 200 inputs agrees on 60.0%" in found.claim


def test_a_poor_copy_is_clear_and_a_copy_that_may_be_chance_is_not_measured() -> None:
    assert judged(theft(0.4)).findings[0].state == "clear"
    (undecided,) = judged(theft(0.7, control=0.68, rows=50)).findings
    assert (undecided.state, undecided.severity) == ("not measured", Severity.info)
    assert "decides nothing" in undecided.claim


def test_what_did_not_run_is_not_measured() -> None:
    skipped = replace(theft(0.9), status="skipped", reason="give more rows")
    verdicts = judged(skipped)
    assert verdicts.findings == ()
    assert verdicts.not_measured[0].why == "give more rows"


def test_a_guard_is_credited_with_what_the_better_thief_is_left_with() -> None:
    first, second = judged(theft(0.95), guard(0.3, 0.6), guard(0.2, 0.9, method="theft/reverse_sigmoid")).findings
    assert (second.id, second.state, second.severity) == ("theft/guards", "found", Severity.info)
    assert second.estimates["agreement of the better thief"].value == 0.6
    assert first.remedy_methods == ("theft/rounding",)
    assert first.remedied["agreement"].value == 0.6
    assert "with theft/rounding, 60.0% by labels alone" in first.remedy


def test_every_guard_is_compared_with_its_own_thief_without_it() -> None:
    (found,) = judged(guard(0.3, 0.6), guard(0.2, 0.4, method="theft/reverse_sigmoid", without=0.7)).findings
    first, second = found.claim.split("; ")
    assert "theft/rounding, 60.0% by labels alone, where a thief on scores without it agrees on 90.0%" in first
    assert "theft/reverse_sigmoid, 40.0% by labels alone, where a thief on scores without it agrees on 70.0%" in second
    assert "without rounding: scores" in found.figures[0].alt
    assert "without reverse_sigmoid: scores" in found.figures[0].alt


def test_a_guard_that_only_fools_the_naive_or_spoils_answers_is_no_remedy() -> None:
    for tried in (guard(0.2, 0.9), guard(0.3, 0.6, harmless=False)):
        first, _ = judged(theft(0.95), tried).findings
        assert first.remedy_methods == ()
        assert "No guard that was tried" in first.remedy
    untried = judged(theft(0.95)).findings[0]
    assert untried.remedy_methods
    assert not untried.remedied


def test_evidence_of_a_copy_is_a_naive_comparison() -> None:
    import stolen_worlds as worlds

    from buckler.theft._scene import Scene

    x = worlds.rows(30)
    y = torch.arange(30) % 3
    copy, other = worlds.victim(), worlds.victim(5)(x).argmax(1)
    evidence = compared(copy, Scene(x, None, x, y, worlds.net, other), other, "_7")
    for row in range(30):
        answer = int(copy(x[row : row + 1]).argmax())
        assert bool(evidence["agreed_7"][row]) == (answer == int(other[row]))
        assert bool(evidence["copy_correct_7"][row]) == (answer == int(y[row]))
