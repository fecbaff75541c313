"""The table of the ten problems, and what is said of pre-training, from trials that are made up."""

from __future__ import annotations

import csv
import io

import torch

from buckler import stats
from buckler.encoders._problems import PROBLEMS, Row, lines
from buckler.encoders.judge import _ten, judge  # pyright: ignore[reportPrivateUsage]
from buckler.findings import NotMeasured, rules
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
    missing = [NotMeasured("encoders/d", "no GPU", PROBLEMS["backdoor"][1])]
    (found,) = _ten(rows, missing)
    head, *grid = found.grid
    assert len(grid) == len(PROBLEMS) == 10
    assert all(len(line) == len(head) for line in grid)
    assert [line[0].partition(". ")[0] for line in grid] == [str(number) for number in range(1, 11)]
    assert grid[0][1:] == ("encoders/b", f"p: {share(0.2)}", "", "encoders/c", str(share(0.1)), "+5.0 points")
    assert grid[5][1:] == ("encoders/a", f"agreement: {share(0.9)}", "80.0% to 70.0%", "none tried", "", "")
    assert grid[6][2] == "not measured: no GPU"
    assert grid[9][2] == "not measured: the plan has no trial of it"
    assert list(csv.reader(io.StringIO(found.tables["ten-problems.csv"]))) == [list(line) for line in found.grid]
    assert found.because == "", "it is judged by no rule"
    assert lines([], {})[1][2].startswith("not measured")


def test_six_are_of_confidentiality_three_of_integrity_and_one_of_availability() -> None:
    kinds = [cell[1] for _, cell in PROBLEMS.values()]
    assert kinds == ["confidentiality"] * 6 + ["integrity"] * 3 + ["availability"]
