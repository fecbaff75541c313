"""Defences by training: beside the same rows without them, attacked with shadows of their own; and what is said."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from membership_worlds import by_heart, net, noise, subject, untaught
from torch import nn

from buckler import stats
from buckler.catalog import find
from buckler.data import Rows
from buckler.findings import Severity, rules
from buckler.kinds import Protected
from buckler.method import describe
from buckler.privacy.audit_epsilon import audit_epsilon
from buckler.privacy.evaluate import evaluate
from buckler.privacy.judge import judge
from buckler.privacy.loss_threshold import loss_threshold
from buckler.subject import Subject
from buckler.threat import Threat
from buckler.trial import Trial, load, save

COMMAND = "buckler run {method} --demo digits --seed 0"
TABLE = rules()


def useless(data: Rows, *, net: Callable[[], nn.Module], seed: int = 0) -> Protected:
    """A defence that defends nothing, with a promise that it does not keep."""
    return Protected(by_heart(data), 0.1, 1e-5)


def blank(data: Rows, *, net: Callable[[], nn.Module], seed: int = 0) -> Protected:
    """A model that knows no row, of weights that its rows and its seed decide."""
    return Protected(untaught((data[0] + seed % 97, data[1])), 0.1, 1e-5)


def given(rows: int = 200) -> Subject:
    return subject(by_heart, rows, net=net)


@pytest.fixture(scope="module")
def defended() -> Trial:
    return evaluate(blank, given(), models=4)


def test_what_stops_the_leak_is_told_from_what_does_not(defended: Trial) -> None:
    idle = evaluate(useless, given(), models=4)
    for trial in (defended, idle):
        assert trial.status == "ok"
        assert trial.estimates["control_auc"].low > 0.7
        assert trial.estimates["control_threshold_auc"].low > 0.7
    assert defended.estimates["auc"].low < 0.5 < defended.estimates["auc"].high
    assert idle.estimates["auc"].low > 0.7
    assert torch.equal(idle.evidence["ranked"][:, 1], idle.evidence["control_ranked"][:, 1])
    assert torch.equal(idle.evidence["correct"], idle.evidence["control_correct"])
    assert idle.params["promised_epsilon"] == 0.1


def test_a_model_that_has_learnt_nothing_is_named(defended: Trial) -> None:
    (check,) = [check for check in defended.checks if "has learnt" in check.name]
    assert not check.passed


def test_where_nothing_leaks_nothing_is_credited() -> None:
    trial = evaluate(blank, subject(untaught, net=net), models=4)
    assert trial.status == "inconclusive"
    assert "nothing is known of what it stops" in trial.reason


def test_shadows_are_trained_with_the_defence_each_with_a_seed_of_its_own() -> None:
    seeds, sizes = list[int](), list[int]()

    def watched(data: Rows, *, net: Callable[[], nn.Module], seed: int = 0) -> Protected:
        seeds.append(seed)
        sizes.append(len(data[1]))
        return blank(data, net=net, seed=seed)

    evaluate(watched, given(100), models=4)
    assert sizes == [50] * 5
    assert len(set(seeds)) == 5


def test_every_number_is_recomputed_and_shadows_are_kept(tmp_path: Path) -> None:
    method = partial(find("privacy/dp_sgd"), epochs=1, batch=20)
    trial = evaluate(method, given(80), models=2 + 2, keep=str(tmp_path / "kept"))
    assert trial.params["promised_epsilon"] == pytest.approx(8.0, rel=0.01)
    assert len(list((tmp_path / "kept").rglob("*.npy"))) == 8
    save(trial, tmp_path / "trial")
    assert load(tmp_path / "trial").estimates.keys() == trial.estimates.keys()


@pytest.mark.parametrize("lost", ["train", "net"])
def test_what_a_subject_lacks_is_said(lost: str) -> None:
    for method in (find("privacy/dp_sgd"), audit_epsilon):
        trial = evaluate(method, replace(given(60), **{lost: None}))  # pyright: ignore
        assert trial.status == "skipped"
        assert f"`{lost}`" in trial.reason


def test_an_audit_is_of_the_defence_and_recomputed(tmp_path: Path) -> None:
    method = partial(audit_epsilon, canaries=100)
    trial = evaluate(method, given(), defence=useless)
    assert trial.estimates["epsilon"].low > 0.5
    assert trial.params["promised_epsilon"] == 0.1
    assert not trial.checks[0].passed
    assert "The promise is broken" in trial.checks[0].says
    save(trial, tmp_path / "trial")
    assert load(tmp_path / "trial").estimates["epsilon"] == trial.estimates["epsilon"]
    assert evaluate(method, given(), defence=blank).checks[0].passed
    verdicts = judge([trial], {}, TABLE, COMMAND)
    assert verdicts.findings[0].severity is Severity.critical
    assert "cannot both be right" in verdicts.contradictions[0]


def test_a_defence_is_asked_for_only_by_an_audit() -> None:
    for method, defence in ((loss_threshold, useless), (audit_epsilon, loss_threshold)):
        with pytest.raises(ValueError, match="expected a defence by training only to audit"):
            evaluate(method, given(60), defence=defence)


# ------------------------------------------------------------------------------------------------ what is said


def protection(epsilon: float, gain: float, right: float, **more: object) -> Trial:
    draw = torch.Generator().manual_seed(0)
    member = (torch.arange(400) % 2).float()
    evidence = {name: torch.rand(400, generator=draw) < right for name in ("correct", "control_correct")}
    evidence["accuracy_lost"] = evidence["control_correct"].to(torch.int8) - evidence["correct"].to(torch.int8)
    scores = {"ranked": gain, "threshold": gain, "control_ranked": 2.0, "control_threshold": 2.0}
    for name, by in scores.items():
        evidence[name] = torch.stack([torch.randn(400, generator=draw) + by * member, member], 1)
    from buckler.privacy._protection import _estimates

    params: dict[str, object] = {"rows": 400, "epsilon": epsilon, "promised_epsilon": epsilon, "promised_delta": 1e-5}
    tags = ("atlas:AML.T0024.000@5.6.0",)
    made = Trial(
        method="privacy/dp_sgd",
        kind="protect",
        params=params,
        threat=Threat("scores", "nothing", "4 shadow models", "which rows were learnt from", tags),
        subject={"name": "x", "model": "m", "data": "d"},
        seed=0,
        status="ok",
        estimates=_estimates(evidence),
        evidence=evidence,
        fingerprint=f"dp-{epsilon}",
    )
    return replace(made, **more)  # pyright: ignore


def test_what_a_defence_buys_and_costs_is_said_with_its_promise() -> None:
    trials = [protection(8.0, 1.0, 0.9), protection(1.0, 0.1, 0.6)]
    verdicts = judge(trials, {}, TABLE, COMMAND)
    (finding,) = verdicts.findings
    assert (finding.id, finding.severity) == ("privacy/defences", Severity.info)
    least, more = (trials[i].estimates for i in (1, 0))
    assert f"with dp sgd (epsilon 1.0) {least['accuracy'].value:.1%} and {least['auc'].value:.2f}; " in finding.claim
    assert f"with dp sgd (epsilon 8.0) {more['accuracy'].value:.1%}" in finding.claim
    assert "epsilon is promised" in finding.claim
    assert finding.estimates["accuracy, dp sgd (epsilon 8.0)"] == more["accuracy"]
    assert "--epsilon 1.0" in finding.reproduce
    assert [figure.name for figure in finding.figures] == ["dp-sgd-epsilon", "defences-accuracy", "defences-auc"]
    for number in ("1", "8"):
        assert number in finding.figures[0].alt
    assert not verdicts.contradictions


def test_one_epsilon_is_no_curve_and_what_was_not_measured_is_said() -> None:
    trials = [protection(8.0, 1.0, 0.9), protection(2.0, 1.0, 0.9, status="inconclusive", reason="Nothing leaks.")]
    verdicts = judge(trials, {}, TABLE, COMMAND)
    assert [figure.name for figure in verdicts.findings[0].figures] == ["defences-accuracy", "defences-auc"]
    assert verdicts.not_measured[0].why == "Nothing leaks."


def audit(gain: float, promised: float | None) -> Trial:
    draw = torch.Generator().manual_seed(1)
    held = (torch.rand(400, generator=draw) < 0.5).float()
    canaries = torch.stack([torch.randn(400, generator=draw) + gain * held, held, torch.full((400,), 1e-5)], 1)
    estimates = {
        "epsilon": stats.epsilon(canaries, "canaries"),
        "reach": stats.reach(canaries, "canaries"),
        "gaussian_epsilon": stats.gaussian_epsilon(canaries, "canaries"),
    }
    params = {} if promised is None else {"promised_epsilon": promised, "defence": "privacy/dp_sgd"}
    made = protection(1.0, 0.0, 0.9)
    path = "privacy/audit_epsilon"
    return replace(made, method=path, kind="audit", params=params, estimates=estimates, evidence={"canaries": canaries})


def test_a_promise_that_is_broken_is_critical_and_one_that_is_not_is_no_proof() -> None:
    broken, sound, none = audit(4.0, 1.0), audit(0.0, 1.0), audit(4.0, None)
    verdicts = judge([none, sound, broken], {}, TABLE, COMMAND)
    (finding,) = verdicts.findings
    assert (finding.id, finding.severity) == ("privacy/epsilon", Severity.critical)
    assert "it promises 1, which is broken." in finding.claim
    assert len(verdicts.contradictions) == 1
    assert finding.reproduce.endswith("--defence privacy/dp_sgd")
    for trials in ([sound], [none], [none, sound]):
        verdicts = judge(trials, {}, TABLE, COMMAND)
        assert verdicts.findings[0].severity is Severity.info
        assert not verdicts.contradictions
    most = sound.estimates["reach"].value
    said = f"which is not refuted where {most:.2f} could be shown, and not proven by that."
    assert said in judge([sound], {}, TABLE, COMMAND).findings[0].claim


def test_the_plan_of_the_package_asks_for_them() -> None:
    from buckler import plan as plans

    mine = plans.jobs(plans.read("privacy"), {})
    asked = [(job.path, job.asked.get("defence") is not None) for job in mine]
    assert {("privacy/audit_epsilon", True), ("privacy/audit_epsilon", False)} <= set(asked)
    assert [path for path, _ in asked].count("privacy/dp_sgd") == 2
    (defence,) = [
        job.asked["defence"] for job in mine if job.path == "privacy/audit_epsilon" and "defence" in job.asked
    ]
    promised = describe(defence).params
    held, delta = torch.arange(200.0) % 2, torch.full((200,), promised["delta"])  # pyright: ignore
    shows = stats.reach(torch.stack([held, held, delta], 1), "canaries").value
    assert shows > 3 * promised["epsilon"]  # or the audit could not fail  # pyright: ignore
    for wrong, says in (
        ("privacy/lira", "expected a method of the kind protect or guard"),
        ({"method": "privacy/dp_sgd", "depth": 3}, "unknown key 'depth', expected one of batch, clip"),
        ({"method": "privacy/dp_sgd", "epsilon": "much"}, "expected a number for epsilon, got 'much'"),
        ({"epsilon": 1.0}, "''"),
    ):
        row = {"method": "privacy/audit_epsilon", "defence": wrong}
        with pytest.raises(plans.BadPlan, match=f"defence: .*{says}"):
            plans.jobs(plans.valid({"title": "x", "rows": 10, "limits": {}, "trial": [row]}, "x"), {})


def test_a_defence_that_refuses_does_so_before_anything_is_trained() -> None:
    def never(data: Rows) -> nn.Module:
        raise AssertionError

    with pytest.raises(ValueError, match="expected epsilon, clip and epochs above 0"):
        evaluate(partial(find("privacy/dp_sgd"), epsilon=0.0), replace(given(60), recipe=never))


def test_the_defence_s_own_evaluation_data_is_left_alone() -> None:
    world = given(60)
    before = noise(60)[0]
    evaluate(blank, world, models=2 + 2)
    assert torch.equal(world.train[0], before)  # pyright: ignore
