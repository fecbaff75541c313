"""Thieves, guards and owners through the area's evaluate, on a subject that is pre-trained in a moment."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from stealing_worlds import deep, random_encoder, rows
from torch import Tensor, nn

from buckler.catalog import find
from buckler.encoders import _pretrained
from buckler.encoders._stolen import compared, less
from buckler.encoders.evaluate import evaluate
from buckler.encoders.judge import judge
from buckler.findings import rules
from buckler.judging import named
from buckler.kinds import Claim, Copy, Owned
from buckler.stats import recompute
from buckler.subject import Subject
from buckler.target import FeatureOracle, Oracle
from buckler.trial import Trial

COMMAND = "buckler run {method}"


def judged(*trials: Trial) -> Any:
    return judge(trials, {}, rules(), COMMAND)


@pytest.fixture(scope="module", autouse=True)
def quickly() -> Iterator[None]:
    """One probe of few labels, where it is five."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_pretrained, "DRAWS", 1)
        yield


@pytest.fixture(scope="module")
def subject() -> Subject:
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 4)).eval()
    return Subject("blobs", model, rows(160, 2), train=rows(200), body=deep)


@pytest.fixture(scope="module")
def keep(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tmp_path_factory.mktemp("encoders"))


def tried(path: str, subject: Subject, keep: str, **more: Any) -> Trial:
    knobs = {name: more.pop(name) for name in list(more) if name in ("epochs", "scale")}
    return evaluate(partial(find(path), **knobs), subject, rows=80, encoder_steps=40, keep=keep, **more)


@pytest.fixture(scope="module")
def theft(subject: Subject, keep: str) -> Trial:
    return tried("encoders/stolen_encoder", subject, keep, epochs=20, queries=(20, 60, 1000))


def test_what_is_paid_is_what_a_count_by_hand_says(theft: Trial) -> None:
    """100 rows: forwards and backwards of 20 epochs, two rows to measure the width, and a query for each row."""
    asked = theft.evidence["asked"].tolist()
    assert asked == [20, 60, 100], "the pool ends what a budget may ask"
    assert theft.evidence["passes"].tolist() == [many * (2 * 20 + 1) + 2 for many in asked]
    assert theft.cost.queries == sum(asked)
    whole = (100 * 2 * 2 + 2) * 40  # two views, forwards and backwards; an epoch has one step
    assert torch.allclose(theft.evidence["share_paid"], theft.evidence["passes"] / whole)


def test_a_copy_is_recognised_and_estimates_are_those_of_the_evidence(theft: Trial) -> None:
    assert theft.estimates["recognised_1000"].value > 0.15 > 5 / 80
    assert theft.estimates["cosine_1000"].value > theft.estimates["cosine_20"].value
    for estimate in theft.estimates.values():
        assert recompute(estimate, theft.evidence) == estimate
    assert torch.equal(theft.evidence["copy_correct"], theft.evidence["copy_1000_correct"])
    assert {"ratio_copy_few", "ratio_copy_20_pairs", "ratio_alone", "ratio_full_few"} <= set(theft.estimates)


def moved(trial: Trial, name: str, low: float, value: float, high: float) -> Trial:
    changed = replace(trial.estimates[name], low=low, value=value, high=high)
    return replace(trial, status="ok", estimates={**trial.estimates, name: changed})


def test_a_finding_needs_a_copy_that_is_surely_worth_more_than_what_its_cost_buys(theft: Trial) -> None:
    good = moved(moved(theft, "ratio_copy_few", 0.9, 0.95, 0.98), "above_alone", 0.1, 0.2, 0.3)
    ten, found = judged(good).findings
    assert (found.id, found.state, str(found.severity)) == ("encoders/stealing", "found", "critical")
    assert "With 100 rows asked" in found.claim
    assert found.tables["stolen-encoders.csv"].count("\n") == 4
    assert found.reproduce.startswith("buckler run encoders/stolen_encoder")
    assert ten.grid[6][1].startswith("stolen_encoder")
    undecided = judged(moved(good, "above_alone", -0.1, 0.0, 0.1)).findings[1]
    assert undecided.state == "not measured"
    assert judged(moved(good, "ratio_copy_few", 0.2, 0.3, 0.4)).findings[1].state == "clear"


def test_features_alone_are_enough_and_a_budget_of_their_own_may_end(subject: Subject, keep: str) -> None:
    encoder = random_encoder(0)
    door = replace(subject, encoder=Oracle(encoder, "features"), train=None)
    trial = tried("encoders/cont_steal", door, keep, epochs=1, queries=(30,))
    assert trial.status in ("ok", "inconclusive")
    assert trial.evidence["asked"].tolist() == [30]
    for budget in (90, 200):  # it ends while the encoder is looked at, or while it is asked
        ends = replace(door, encoder=Oracle(encoder, "features", budget))
        trial = tried("encoders/cont_steal", ends, keep, epochs=1, queries=(60,))
        assert trial.status == "inconclusive"
        assert "budget of queries ended" in trial.reason
    guard = tried("encoders/top_features", door, keep)
    assert guard.status == "skipped"


def test_a_guard_that_changes_nothing_changes_nothing(subject: Subject, keep: str, theft: Trial) -> None:
    trial = tried("encoders/noisy_features", subject, keep, scale=0.0, queries=(40,))
    assert trial.checks[0].passed
    assert not trial.evidence["change_guarded"].any()
    assert torch.equal(trial.evidence["naive_correct"], trial.evidence["undefended_correct"])
    found = judged(theft_ok(theft), trial).findings
    assert [one.id for one in found] == ["encoders/ten", "encoders/stealing", "encoders/stealing/guards"]
    assert found[1].remedied == {}
    assert found[0].grid[6][4].startswith("noisy_features")


def theft_ok(trial: Trial) -> Trial:
    return moved(moved(trial, "ratio_copy_few", 0.9, 0.95, 0.98), "above_alone", 0.1, 0.2, 0.3)


def test_a_guard_that_ruins_features_harms(subject: Subject, keep: str) -> None:
    trial = tried("encoders/noisy_features", subject, keep, scale=30.0, queries=(40,))
    assert not trial.checks[0].passed
    assert trial.estimates["change_guarded"].high < 0


def claims_all(model: nn.Module, data: tuple[Tensor, Tensor], *, seed: int = 0) -> Owned:
    """It accuses everybody."""
    del model, data, seed

    def claim(suspect: nn.Module | Oracle) -> Claim:
        del suspect
        return Claim(1e-6, 0)

    return Owned(claim)


def test_a_claim_of_everybody_is_found_out(subject: Subject, keep: str) -> None:
    trial = evaluate(claims_all, subject, rows=80, encoder_steps=40, models=3, keep=keep)
    assert not trial.checks[0].passed
    assert trial.estimates["false_claims"].value == 1
    (found,) = judged(trial).findings
    assert (found.state, str(found.severity)) == ("found", "high")
    assert "prove nothing" in found.claim


def test_a_mark_is_claimed_after_tuning_and_pruning_and_nobody_else_is(subject: Subject, keep: str) -> None:
    trial = tried("encoders/wet", subject, keep, models=3)
    p = {name: trial.evidence[f"p_{name}"] for name in ("own", "tuned", "pruned", "quantised", "turned", "independent")}
    assert max(float(p[name]) for name in ("own", "tuned", "pruned", "quantised")) < 1e-3
    assert float(p["turned"]) > 0.01
    assert float(p["independent"].min()) > 0.01
    assert len(p["independent"]) == 3
    assert trial.checks[0].passed
    (found,) = judged(trial).findings
    assert found.id == "encoders/stealing/ownership/wet"
    assert "but none with its features turned" in found.claim
    assert len(found.figures) == 1
    assert named(trial) == "encoders/wet"


def test_copies_are_compared_row_by_row() -> None:
    a, b = torch.tensor([True, False, True]), torch.tensor([False, False, True])
    assert less({"a": a, "b": b}, "a", "b").tolist() == [1, 0, 0]
    evidence = {"correct": a, "few_correct": a, "x_correct": b, "x_few_correct": a}
    assert compared(evidence, ["x"], ())["both_x_correct"].tolist() == [[0, 1], [0, 0], [1, 1]]


def half_asked(oracle: FeatureOracle, pool: Tensor, *, net: Any, seed: int = 0) -> Copy:
    """It gives its network as it begins."""
    del seed
    oracle(pool[: min(len(pool), oracle.budget or len(pool)) // 2])
    return net().eval()


def test_a_thief_who_learns_nothing_is_no_finding(subject: Subject, keep: str, theft: Trial) -> None:
    trial = evaluate(half_asked, subject, rows=80, encoder_steps=40, queries=(100,), keep=keep)
    assert trial.evidence["asked"].tolist() == [50]
    assert trial.evidence["passes"].tolist() == [50]
    assert trial.estimates["recognised"].high < theft.estimates["recognised"].low
    assert trial.estimates["above_alone"].low <= 0
    assert judged(replace(trial, status="ok")).findings[1].state != "found"
