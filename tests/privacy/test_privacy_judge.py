"""The judge: what is surely above chance is graded, what few rows cannot tell is not, and pictures are of members."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from buckler import stats
from buckler.findings import Severity, rules
from buckler.privacy._measure import CONTROL, estimates
from buckler.privacy.judge import judge
from buckler.stats import agree
from buckler.threat import Threat
from buckler.trial import Check, Trial

COMMAND = "buckler run {method} --demo digits --seed 0"
TABLE = rules()


def trial(gain: float, *, rows: int = 1200, method: str = "privacy/loss_threshold", **params: object) -> Trial:
    """Scores that are normal, and those of members higher by `gain`."""
    draw = torch.Generator().manual_seed(0)
    member = (torch.arange(rows) % 2).float()
    score = torch.randn(rows, generator=draw) + gain * member
    judged = torch.stack([(score > gain / 2).float(), member], 1)
    top = score.masked_fill(member == 0, -torch.inf).argsort(descending=True)[:10]
    evidence = {
        "ranked": torch.stack([score, member], 1),
        "judged": judged,
        "row": torch.where(member == 1, torch.arange(rows), -1),
        "label": torch.arange(rows) % 7,
        "exposed": torch.rand(10, 1, 4, 4, generator=draw),
        "exposed_at": top,
        "correct": torch.ones(rows // 2, dtype=torch.bool),
        "member_correct": torch.ones(rows // 2, dtype=torch.bool),
    }
    tags = ("atlas:AML.T0024.000@5.6.0",)
    return Trial(
        method=method,
        kind="infer",
        params={"rows": rows, **params},
        threat=Threat("scores", "nothing", "1 query per row", "which rows were learnt from", tags),
        subject={"name": "x", "model": "m", "data": "d"},
        seed=0,
        status="ok",
        estimates=estimates(evidence),
        evidence=evidence,
        fingerprint=f"{method}-{gain}",
        checks=(Check(CONTROL, True, "On a control the area under the curve is 0.500.", 0.5),),
    )


def test_what_is_far_above_chance_is_found_and_graded() -> None:
    (finding,) = judge([trial(2.0)], {}, TABLE, COMMAND).findings
    assert (finding.id, finding.state, finding.severity) == ("privacy/model", "found", Severity.high)
    assert f"finds {trial(2.0).estimates['found_at_one_percent'].value:.1%} of the rows" in finding.claim
    assert "(chance: 1%)" in finding.claim
    assert finding.because.endswith("(privacy.members_found).")
    assert next(iter(finding.estimates)) == "members found at 1% false alarms"
    assert finding.remedy
    assert finding.reproduce.startswith("buckler run privacy/loss_threshold --demo digits")


def test_a_model_that_gives_nobody_away_is_clear() -> None:
    (finding,) = judge([trial(0.0, rows=4000)], {}, TABLE, COMMAND).findings
    assert (finding.state, finding.severity) == ("clear", Severity.info)
    assert finding.tables == {}
    assert finding.remedy == ""


def test_few_rows_decide_nothing() -> None:
    (finding,) = judge([trial(0.0, rows=60)], {}, TABLE, COMMAND).findings
    assert finding.state == "not measured"
    assert "60 rows are too few to tell" in finding.claim


def test_what_is_sure_on_average_counts_where_the_tail_says_nothing() -> None:
    """Few rows cannot tell what is found at 1 % of false alarms, and can tell an area far above a half."""
    few = trial(1.2, rows=160)
    assert few.estimates["found_at_one_percent"].low <= 0.01
    (finding,) = judge([few], {}, TABLE, COMMAND).findings
    assert finding.state == "found"
    assert "(privacy.membership)" in finding.because


def test_the_gravest_trial_is_shown_and_all_are_drawn() -> None:
    weak, strong = trial(0.3), trial(2.0, method="privacy/entropy")
    (finding,) = judge([weak, strong], {}, TABLE, COMMAND).findings
    assert "entropy finds" in finding.claim
    roc = next(figure for figure in finding.figures if figure.name == "roc")
    assert "loss threshold:" in roc.alt
    assert "entropy:" in roc.alt
    assert set(finding.trials) == {weak.fingerprint, strong.fingerprint}


def test_the_model_and_the_training_have_findings_of_their_own() -> None:
    shadowed = trial(1.0, method="privacy/lira", models=16)
    found = judge([trial(0.3), shadowed], {}, TABLE, COMMAND).findings
    assert [finding.id for finding in found] == ["privacy/model", "privacy/training"]
    assert [finding.cell for finding in found] == [("queries", "confidentiality"), ("training", "confidentiality")]
    assert "With 16 models trained on rows of the same kind, lira" in found[1].claim
    assert "--models 16" in found[1].reproduce


def test_the_exposed_rows_are_shown_and_listed_with_their_false_alarms() -> None:
    one = trial(3.0)
    (finding,) = judge([one], {}, TABLE, COMMAND).findings
    gallery = next(figure for figure in finding.figures if figure.name == "exposed")
    assert gallery.alt.startswith("10 exposed training rows")
    head, *lines = finding.tables["exposed-model.csv"].splitlines()
    assert head == "row,label,score,false_alarms"
    rows = [int(line.split(",")[0]) for line in lines]
    assert rows[:10] == one.evidence["row"][one.evidence["exposed_at"]].tolist()
    assert min(rows) >= 0
    found = one.estimates["found_at_one_percent"].value * 600
    assert len(lines) == pytest.approx(found, abs=1)
    assert all(float(line.split(",")[3]) <= 0.01 for line in lines)


def test_what_was_not_measured_is_said_with_its_place() -> None:
    doubted = replace(trial(3.0), status="inconclusive", reason="The two sides differ.")
    verdicts = judge(
        [doubted, replace(trial(1.0, models=4), status="failed", reason="too few rows")], {}, TABLE, COMMAND
    )
    assert verdicts.findings == ()
    assert [(m.why, m.cell) for m in verdicts.not_measured] == [
        ("The two sides differ.", ("queries", "confidentiality")),
        ("too few rows", ("training", "confidentiality")),
    ]


def test_without_a_control_the_claim_says_so() -> None:
    says = "No control was trained: rows may be told apart by something else."
    one = replace(trial(2.0), checks=(Check(CONTROL, False, says),))
    (finding,) = judge([one], {}, TABLE, COMMAND).findings
    assert says in finding.claim


def test_numbers_of_the_finding_are_the_trial_s() -> None:
    one = trial(1.0)
    (finding,) = judge([one], {}, TABLE, COMMAND).findings
    assert agree(finding.estimates["area under the curve"], stats.area(one.evidence["ranked"], "ranked"))
