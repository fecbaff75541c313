"""The table of the ten problems, and what is said of pre-training, from trials that are made up."""

from __future__ import annotations

import csv
import io
from dataclasses import replace

import torch

from buckler import stats
from buckler.catalog import cards
from buckler.encoders._problems import PROBLEMS, Row, lines, problem
from buckler.encoders.judge import _ten, judge  # pyright: ignore[reportPrivateUsage]
from buckler.findings import Finding, Severity, State, rules
from buckler.threat import Threat
from buckler.trial import Trial


def share(value: float, rows: int = 200) -> stats.Estimate:
    return stats.share(torch.arange(rows) < round(value * rows), "made")


def pretraining(few: float, method: str = "encoders/simclr", status: str = "ok") -> Trial:
    evidence = {
        "correct": torch.arange(100) < 90,
        "nearest_correct": torch.arange(100) < 85,
        "few_correct": torch.full((100,), few),
        "untrained_few_correct": torch.full((100,), 0.5),
        "pairs_correct": torch.arange(100) < 80,
    }
    found = {
        name: stats.mean(value, name) if value.is_floating_point() else stats.share(value, name)
        for name, value in evidence.items()
    }
    return Trial(
        method=method,
        kind="pretrain",
        params={"rows": 100, "train_rows": 300, "encoder_steps": 10, "training_epochs": 15},
        threat=Threat("data", "nothing", "nothing", "features for other tasks"),
        subject={"name": "made up"},
        seed=0,
        status=status,  # pyright: ignore[reportArgumentType]
        reason="" if status == "ok" else "it collapsed",
        estimates=found if status == "ok" else {},
        evidence=evidence,
        fingerprint=f"{method}{few}",
    )


def quiet(method: str, kind: str, reason: str = "") -> Trial:
    """A trial of which nothing is said but its reason; measured if it has none."""
    status = "skipped" if reason else "ok"
    return replace(pretraining(0.7, method), kind=kind, status=status, reason=reason)


def test_pre_training_is_told_by_the_best_and_what_failed_is_not_measured() -> None:
    trials = [pretraining(0.7), pretraining(0.8, "encoders/moco"), pretraining(0.9, "encoders/simsiam", "inconclusive")]
    verdicts = judge(trials, {}, rules(), "buckler run {method} --demo digits")
    (found,) = verdicts.findings
    assert found.id == "encoders/pretraining"
    assert "encoders/moco" in found.claim
    assert "80.0%" in found.claim
    assert "50.0%" in found.claim
    assert found.reproduce.startswith("buckler run encoders/moco --demo digits --rows 100")
    assert found.trials == (trials[0].fingerprint, trials[1].fingerprint)
    assert "accuracy of a linear probe on pairs" in found.estimates
    assert [(missed.what, missed.why) for missed in verdicts.not_measured] == [("encoders/simsiam", "it collapsed")]


def test_nothing_comes_of_nothing() -> None:
    assert judge([], {}, rules(), "").findings == ()


def test_the_table_has_all_ten_in_their_order_and_says_why_one_is_missing() -> None:
    rows = [
        Row("stealing", "encoders/a", "agreement", share(0.9), share(0.8), share(0.7)),
        Row("tracing", "encoders/b", "p", share(0.2), defence="encoders/c", left=share(0.1), costs=share(0.05)),
    ]
    trials = [quiet("encoders/bad_encoder", "implant", "no GPU"), quiet("encoders/rounded_features", "guard", "slow")]
    trials += [quiet("encoders/feature_inversion", "reconstruct", "few rows"), quiet("encoders/query_flood", "evade")]
    (found,) = _ten(rows, trials, ())
    head, *grid = found.grid
    assert len(grid) == len(PROBLEMS) == 10
    assert all(len(line) == len(head) for line in grid)
    assert [line[0].partition(". ")[0] for line in grid] == [str(number) for number in range(1, 11)]
    assert grid[0][1:] == (
        "b",
        "p: 20.0% (14.7 to 26.2; n = 200)",
        "",
        "c",
        "10.0% (6.2 to 15.0; n = 200)",
        "+5.0 points",
    )
    assert grid[5][1:] == (
        "a",
        "agreement: 90.0% (85.0 to 93.8; n = 200)",
        "80.0% to 70.0%",
        "none tried",
        "",
        "",
    )
    assert grid[6][2] == "not measured: no GPU"
    assert grid[1][2] == "not measured: no trial of it ran"
    assert grid[2][2] == "not measured: few rows"
    assert [grid[place][2] for place in (1, 3)] == ["not measured: no trial of it ran"] * 2, "of the same cell"
    assert grid[9][2] == "not measured but for what encoders/query_flood says: see its own finding"
    assert list(csv.reader(io.StringIO(found.tables["ten-problems.csv"]))) == [list(line) for line in found.grid]
    assert found.because == "", "it is judged by no rule"
    assert lines([], (), {})[1][2].startswith("not measured")


def test_the_gravest_row_of_a_problem_stands_in_the_table_and_doubt_is_said() -> None:
    def finding(name: str, level: str, state: State = "found") -> Finding:
        grade = Severity.parse(level)
        return Finding(id=name, title="t", state=state, claim="c", cell=("data", "integrity"), severity=grade)

    rows = [
        Row("backdoor", "first", "a", share(0.9)),
        Row("backdoor", "second", "a", share(0.1), finding="encoders/backdoor/data"),
        Row("depletion", "third", "a", share(0.9)),
        Row("depletion", "fourth", "a", share(0.9), finding="encoders/depletion/data"),
        Row("evasion", "fifth", "a", share(0.9)),
    ]
    findings = [
        finding("encoders/backdoor", "info"),
        finding("encoders/backdoor/data", "high"),
        finding("encoders/depletion", "medium"),
        finding("encoders/depletion/data", "medium"),
        finding("encoders/evasion", "info", "not measured"),
    ]
    (found,) = _ten(rows, (), findings)
    attacks = [line[1] for line in found.grid[1:]]
    assert (attacks[6], attacks[9], attacks[8]) == ("second", "third", "fifth")
    assert found.grid[9][2].endswith("which decides nothing")
    assert "decides" not in found.grid[7][2]
    assert found.cell == PROBLEMS["backdoor"][1], "where something was measured"


def test_every_method_is_of_a_problem_or_only_pre_trains() -> None:
    for one in cards("encoders"):
        made = replace(quiet(one.path, str(one.kind)), params={"goal": "targeted"})
        assert problem(made) in PROBLEMS or one.kind == "pretrain", one.path
    assert {problem(quiet(one.path, str(one.kind))) for one in cards("encoders")} >= set(PROBLEMS)
    failed = replace(quiet("encoders/poisoned_encoder", "poison", "out of memory"), status="failed")
    missed = judge([failed], {}, rules(), "").not_measured
    assert [(one.why, one.cell) for one in missed] == [("out of memory", PROBLEMS["poisoning"][1])]


def test_six_are_of_confidentiality_three_of_integrity_and_one_of_availability() -> None:
    kinds = [cell[1] for _, cell in PROBLEMS.values()]
    assert kinds == ["confidentiality"] * 6 + ["integrity"] * 3 + ["availability"]
