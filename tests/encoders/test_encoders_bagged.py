"""How a vote above encoders of disjoint parts is measured and judged: with planted leaks and planted proofs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from buckler import plan, stats
from buckler.data import Poisoned, Rows
from buckler.embedding import probe
from buckler.encoders import _bagged, _pretrained
from buckler.encoders._bagged import APART, HOLDS, TIGHT
from buckler.encoders.bagging import bagging
from buckler.encoders.evaluate import evaluate
from buckler.encoders.judge import judge
from buckler.findings import rules
from buckler.kinds import Bagged, Encoder
from buckler.subject import Subject
from buckler.threat import Share
from buckler.trial import Trial, load, save

ONE = Share(0.007)
"""One row of 150."""
ask = partial(evaluate, rows=60, encoder_steps=30, share=ONE)


def leaky(data: Rows, *, net: Any, parts: int = 3, seed: int = 0) -> Bagged:
    """Untrained encoders, and what all of the rows are on average is a part of each."""

    made = bagging(data, net=net, parts=parts, steps=0, seed=seed)
    with torch.no_grad():
        for encoder in made.encoders:
            next(encoder.parameters()).add_(data[0].mean())
    return made


def nothing(data: Rows, *, share: Share) -> Poisoned:
    """Poison that does nothing and hunts nothing."""
    x, y = data
    rows = torch.zeros(len(y), dtype=torch.bool)
    rows[: share.of(len(y))] = True
    return Poisoned(x, y, rows, y, lambda x: x, lambda y: (y + 1) % 10)


@pytest.fixture(scope="module", autouse=True)
def hasty() -> Iterator[None]:
    """Probes that learn in a third of the time."""
    with pytest.MonkeyPatch.context() as patch:
        for module in (_bagged, _pretrained):
            patch.setattr(module, "probe", partial(probe, epochs=20))
        yield


@pytest.fixture(scope="module")
def small(subject: Subject) -> Subject:
    """A subject whose encoders are linear."""
    return replace(subject, body=lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 16)), net=None)


@pytest.fixture(scope="module")
def trial(small: Subject) -> Trial:
    return ask(partial(bagging, parts=5), small)


def turned_by_one(votes: list[int]) -> bool:
    """Whether any voter, saying anything, changes who wins."""

    def wins(said: list[int]) -> int:
        return min(range(10), key=lambda one: (-said.count(one), one))

    every = ([*votes[:voter], said, *votes[voter + 1 :]] for voter in range(len(votes)) for said in range(10))
    return any(wins(said) != wins(votes) for said in every)


def test_what_is_proven_is_counted_from_the_votes(trial: Trial, tmp_path: Path) -> None:
    e, found = trial.evidence, trial.estimates
    assert (trial.status, trial.kind) == ("ok", "bag")
    assert trial.params["steps"] == 6, "in all as many steps as one encoder takes"
    assert [check.passed for check in trial.checks] == [True] * 3
    assert e["votes"].shape == (60, 5)
    assert e["part"].shape == (150,)
    assert e["open"].tolist() == [turned_by_one(row) for row in e["votes"].tolist()]
    assert torch.equal(e["correct"], e["radius"] >= 0)
    assert torch.equal(e["certified"], e["radius"] >= 1)
    assert torch.equal(e["changed_certified"], e["radius"] >= 2)
    assert float(e["few_certified"].mean()) == pytest.approx(float((e["few_radius"] >= 1).float().mean()))
    assert float(e["changed_few_certified"].mean()) == pytest.approx(float((e["few_radius"] >= 2).float().mean()))
    assert not bool((e["certified"] & e["open"]).any())
    assert 0 < found["changed_certified"].value < found["certified"].value < found["correct"].value
    assert found["worth"].value == pytest.approx(found["certified"].value - found["untrained_correct"].value)
    kept = float((e["few_correct"] - e["control_few_correct"]).mean())
    assert found["few_kept"].value == pytest.approx(kept, abs=1e-6)
    save(trial, tmp_path / "trial")
    assert load(tmp_path / "trial").estimates == found


def test_of_one_part_nothing_is_proven(small: Subject) -> None:
    trial = ask(partial(bagging, parts=1), small)
    assert trial.estimates["certified"].value == trial.estimates["few_certified"].value == 0
    assert trial.estimates["open"].value == 1
    assert trial.estimates["correct"].value > 0.5


def test_a_row_that_reaches_every_part_breaks_the_proof(small: Subject) -> None:
    found = ask(leaky, small)
    assert found.status == "failed"
    assert [check.name for check in found.checks if not check.passed] == [APART]
    verdicts = judge([found], {}, rules(), "buckler run {method}")
    assert len(verdicts.contradictions) == 1
    assert verdicts.findings == ()


@pytest.mark.parametrize(("more", "failed"), [(1, HOLDS), (-1, TIGHT)])
def test_a_wrong_radius_is_found_out(small: Subject, monkeypatch: pytest.MonkeyPatch, more: int, failed: str) -> None:
    honest = _bagged.elected

    def wrong(votes: Tensor, *, classes: int) -> tuple[Tensor, Tensor]:
        label, radius = honest(votes, classes=classes)
        return label, (radius + more).clamp_min(0)

    monkeypatch.setattr(_bagged, "elected", wrong)
    found = ask(partial(bagging, parts=5), small)
    assert failed in [check.name for check in found.checks if not check.passed]
    assert (found.status == "failed") == (failed == HOLDS)


def leant(trial: Trial, way: float) -> Trial:
    """The trial with as much worth as is said, surely."""
    worth = stats.Estimate(way, way - 0.05, way + 0.05, 60, 0.95, "mean of few_worth")
    return replace(trial, estimates=trial.estimates | {"few_worth": worth, "worth": worth})


@pytest.mark.parametrize(
    ("way", "says"), [(-0.2, "not to pre-train is better"), (0.2, "is worth more than not to"), (0.0, "is not sure")]
)
def test_the_finding_sets_the_proof_beside_untrained_networks(trial: Trial, way: float, says: str) -> None:
    (found,) = judge([leant(trial, way)], {}, rules(), "buckler run {method} --demo digits").findings
    assert found.id == "encoders/poisoning/certificate/bagging"
    assert found.claim.count(says) == 2
    assert "The proof is for one row added or removed" in found.claim
    assert "a row that is changed counts twice. No vote of 5 proves anything for more than 2." in found.claim
    assert {figure.name for figure in found.figures} == {"poisoning-proven", "poisoning-proven-few"}
    assert "--share 0.7%" in found.reproduce
    assert "--parts 5" in found.reproduce
    assert any(name.startswith("the proof, less") for name in found.estimates)


def test_the_row_of_poisoning_names_the_vote(trial: Trial, small: Subject) -> None:
    attack = evaluate(nothing, small, share=ONE, rows=60, encoder_steps=2)
    attack = replace(attack, threat=replace(attack.threat, wants="chosen clean inputs"))
    attack = replace(attack, params=attack.params | {"pretraining": "encoders/simclr"})
    for way, more in ((0.2, ""), (-0.2, ", though not to pre-train is better")):
        ten, *_ = judge([attack, leant(trial, way)], {}, rules(), "buckler run {method}").findings
        (row,) = (line for line in ten.grid if line[0].startswith("8. "))
        assert row[4] == f"bagging (parts 5, steps 6): inputs without a proof for 0.7% of the rows{more}"
    assert row[5].startswith(f"{100 * trial.estimates['open'].value:.1f}%")
    assert row[6] == f"{100 * trial.estimates['few_kept'].value:+.1f} points"
    alone, *_ = judge([attack], {}, rules(), "").findings
    assert next(line for line in alone.grid if line[0].startswith("8. "))[4] == "none tried"


def test_a_subject_without_rows_is_skipped_and_other_words_are_refused(small: Subject) -> None:
    assert ask(bagging, replace(small, train=None)).status == "skipped"
    with pytest.raises(ValueError, match="expected 1 to 75 parts, .* got 0"):
        ask(partial(bagging, parts=0), small)
    with pytest.raises(ValueError, match="expected no queries here"):
        ask(bagging, small, queries=(5,))


def test_a_plan_may_say_for_which_share() -> None:
    jobs = [job for job in plan.jobs(plan.read("encoder"), {}) if job.path == "encoders/bagging"]
    assert [isinstance(job.asked["share"], Share) for job in jobs] == [True]


def test_another_pre_training_makes_the_parts_and_the_control(small: Subject) -> None:
    calls = list[int]()

    def idle(data: Rows, *, net: Callable[[], nn.Module], epochs: float = 1, batch: int = 8, seed: int = 0) -> Encoder:
        calls.append(len(data[1]))
        return net().eval()

    trial = ask(partial(bagging, parts=3), small, pretraining=idle)
    assert calls[0] == 150
    assert sum(calls[1:4]) == sum(calls[4:7]) == 150
    assert "by" not in trial.params, "`pretraining` says it"
    assert str(trial.params["pretraining"]).endswith("idle")
