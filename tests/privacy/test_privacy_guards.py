"""Guards before members: what every one promises, what is told through them by whom, and what is said of it."""

from __future__ import annotations

import copy
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from membership_worlds import by_heart, net, noise, subject, untaught
from torch import Tensor, nn

from buckler.catalog import cards, find
from buckler.data import Rows
from buckler.dice import fingerprint_rows
from buckler.findings import Severity, rules
from buckler.kinds import Adaptive, Defended
from buckler.method import Method
from buckler.privacy._farm import farm, halves
from buckler.privacy._guarded import KEPT, STOPPED
from buckler.privacy._guards import Recorded, guarded_shadows
from buckler.privacy._shadows import views
from buckler.privacy.evaluate import evaluate
from buckler.privacy.judge import judge
from buckler.privacy.lira import lira
from buckler.privacy.loss_threshold import loss_threshold
from buckler.subject import Subject
from buckler.target import Oracle
from buckler.train import started
from buckler.trial import Trial, load, save

GUARDS = [card.path for card in cards("privacy") if card.kind == "guard"]
COMMAND = "buckler run {method} --demo digits --seed 0"
HAS: dict[str, Any] = {"members": noise(60), "public": noise(60, seed=3)}


def made(path: str, model: nn.Module) -> nn.Module:
    method = find(path)
    return method(model, **({**HAS, "epochs": 10} if path == "privacy/memguard" else {}))


@pytest.fixture(scope="module")
def model() -> nn.Module:
    made = by_heart(noise(60))
    made.zero_grad()
    return made


# ------------------------------------------------------------------------------------------------ every guard


def test_they_are_here() -> None:
    assert {"privacy/memguard", "privacy/noise"} <= set(GUARDS)


@pytest.mark.parametrize("path", GUARDS)
def test_answers_are_probabilities_with_the_same_label_and_always_the_same(path: str, model: nn.Module) -> None:
    x = torch.cat([noise(60)[0], noise(40, seed=5)[0]])
    before, state = copy.deepcopy(model.state_dict()), torch.random.get_rng_state()
    guard = made(path, model)
    with torch.no_grad():
        plain, first, again = model(x), guard(x), guard(x)
        alone = torch.cat([guard(row[None]) for row in x[:8]])
    scores = first.softmax(1)
    assert bool(scores.isfinite().all())
    assert bool((scores >= 0).all())
    torch.testing.assert_close(scores.sum(1), torch.ones(100))
    assert torch.equal(first.argmax(1), plain.argmax(1))
    assert not torch.allclose(scores, plain.softmax(1), atol=1e-3)
    assert torch.equal(first, again)
    torch.testing.assert_close(alone.softmax(1), scores[:8], atol=1e-4, rtol=0)
    assert isinstance(guard, Adaptive)
    assert torch.equal(guard.surrogate()(x), plain)
    assert torch.equal(state, torch.random.get_rng_state())
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert all(p.requires_grad and p.grad is None for p in model.parameters())


@pytest.mark.parametrize("path", GUARDS)
def test_who_is_sure_to_the_last_bit_is_guarded_too(path: str) -> None:
    class Sure(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return 500 * x.flatten(1)[:, :4]

    x = noise(40, seed=5)[0]
    scores = made(path, Sure())(x).softmax(1)
    assert bool(scores.isfinite().all())
    assert torch.equal(scores.argmax(1), Sure()(x).argmax(1))


# ------------------------------------------------------------------------------------------------ shadows behind guards


def same(model: nn.Module, *, seed: int = 0) -> Defended:
    """A guard that does nothing."""
    return copy.deepcopy(model)


def silent(model: nn.Module) -> Defended:
    """A guard that answers everything alike."""
    return Silent(model)


class Silent(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        return 0 * self.model(x)


def test_a_guard_before_recorded_answers_is_one_before_the_model() -> None:
    x, y = noise(40)
    models = [started(net, seed).eval() for seed in range(2)]
    taught = iter(models)
    shadows = farm(lambda _: next(taught), (x, y), halves(40, 2), asked=3)
    seen = list[tuple[int, int, int]]()

    def guard(model: nn.Module, members: Rows, public: Rows | None, seed: int) -> nn.Module:
        assert public is not None
        seen.append((len(members[1]), len(public[1]), seed))
        return find("privacy/noise")(model, seed=seed)

    shown = guarded_shadows(shadows, x, y, guard)
    for place, model in enumerate(models):
        guarded = find("privacy/noise")(model, seed=2 + place)
        with torch.no_grad():
            expected = torch.stack([guarded(view).log_softmax(1) for view in views(x, 3)], 1)
        torch.testing.assert_close(shown.answers[place], expected, atol=1e-4, rtol=1e-4)
    assert seen == [(20, 20, 2), (20, 20, 3)]
    with pytest.raises(ValueError, match="inputs that were answered before"):
        Recorded(x, shadows.answers[0])(noise(1, seed=9)[0])


# ------------------------------------------------------------------------------------------------ trials


@pytest.fixture(scope="module")
def tried() -> Trial:
    return evaluate(partial(find("privacy/memguard"), epochs=15), subject(by_heart, 400), models=4, seed=1)


def test_memguard_stops_who_does_not_know_it_and_nobody_else(tried: Trial) -> None:
    """Who does not know it is a network that sees what MemGuard's own classifier does: scores without the label."""
    e = tried.estimates
    assert (tried.status, tried.kind) == ("ok", "guard")
    assert e["control_network_auc"].low > 0.7
    assert e["naive_auc"].low < 0.5 < e["naive_auc"].high
    assert e["naive_auc"].high < e["control_naive_auc"].low - 0.05
    assert e["classes_auc"].low > 0.6
    assert e["labels_kept"].value == 1
    assert e["accuracy_lost"].value == 0
    assert torch.equal(tried.evidence["labels"], tried.evidence["control_labels"])
    assert 0.01 < e["scores_moved"].value <= 1
    passed = {check.name: check.passed for check in tried.checks}
    assert not passed[STOPPED]
    assert passed[KEPT]


def test_every_number_is_recomputed(tried: Trial, tmp_path: Path) -> None:
    save(tried, tmp_path / "trial")
    assert load(tmp_path / "trial").estimates.keys() == tried.estimates.keys()


def test_what_is_left_is_said_plainly(tried: Trial) -> None:
    (finding,) = judge([tried], {}, rules(), COMMAND).findings
    assert (finding.id, finding.severity) == ("privacy/guards", Severity.info)
    for name in ("naive", "labels"):
        assert f"{tried.estimates[f'{name}_auc'].value:.2f}" in finding.claim
    assert "hides nothing from who asks for labels alone" in finding.claim
    assert "--models 4" in finding.reproduce


def test_a_guard_that_does_nothing_stops_nothing_and_one_that_says_nothing_stops_all() -> None:
    idle, mute = (evaluate(guard, subject(by_heart, 100), models=4) for guard in (same, silent))
    for name in ("lira", "classes", "network", "threshold", "near", "labels"):
        with_it, without = (idle.estimates[f"{before}{name}_auc"].value for before in ("", "control_"))
        assert with_it == pytest.approx(without, abs=0.01)
        assert mute.estimates[f"{name}_auc"].low <= 0.5
    assert idle.estimates["scores_moved"].value == 0
    assert idle.estimates["naive_auc"].value == pytest.approx(idle.estimates["control_naive_auc"].value, abs=0.01)
    passed = {check.name: check.passed for check in mute.checks}
    assert passed[STOPPED]
    assert not passed[KEPT]


def test_noise_that_the_mean_over_near_inputs_undoes_is_not_credited() -> None:
    """Every attack that asks about the rows themselves is at chance, and labels change as well."""
    trial = evaluate(
        partial(find("privacy/noise"), size=5.0, keep_label=False), subject(by_heart, 200), models=4, seed=1
    )
    for name in ("lira", "classes", "network", "threshold", "labels"):
        assert trial.estimates[f"{name}_auc"].low <= 0.5
    assert trial.estimates["near_auc"].low > 0.55
    (stopped,) = (check for check in trial.checks if check.name == STOPPED)
    assert not stopped.passed
    assert "by these attacks" in stopped.name
    assert "near" in stopped.says
    assert "near inputs" in judge([trial], {}, rules(), COMMAND).findings[0].claim


def test_where_nothing_leaks_nothing_is_credited() -> None:
    trial = evaluate(find("privacy/noise"), subject(untaught, 100), models=4)
    assert trial.status == "inconclusive"
    assert "nothing is known of what it stops" in trial.reason
    assert judge([trial], {}, rules(), COMMAND).not_measured[0].why == trial.reason


@pytest.mark.parametrize(("lost", "said"), [("train", "`train`"), ("recipe", "`recipe` or its `net`")])
def test_what_a_subject_lacks_is_said(lost: str, said: str) -> None:
    trial = evaluate(find("privacy/noise"), replace(subject(untaught, 60), **{lost: None}))  # pyright: ignore
    assert trial.status == "skipped"
    assert said in trial.reason


# ------------------------------------------------------------------------------------------------ before an inference


def test_any_area_s_guard_stands_before_an_inference() -> None:
    given = subject(by_heart, 100)
    plain = evaluate(loss_threshold, given)
    kept = evaluate(loss_threshold, given, defence=same)
    few = evaluate(loss_threshold, given, defence=find("theft/top_k"))
    mute = evaluate(loss_threshold, given, defence=silent)
    assert torch.equal(plain.evidence["ranked"], kept.evidence["ranked"])
    assert plain.estimates["control_auc"] == kept.estimates["control_auc"]
    assert few.params["defence"] == "theft/top_k"
    assert few.estimates["accuracy"] == plain.estimates["accuracy"]
    assert not torch.equal(plain.evidence["ranked"], few.evidence["ranked"])
    assert plain.estimates["auc"].low > 0.8
    assert mute.estimates["auc"].value == mute.estimates["control_auc"].value == 0.5
    ids = [finding.id for finding in judge([plain, few], {}, rules(), COMMAND).findings]
    assert ids == ["privacy/model", "privacy/guarded"]
    behind = judge([plain, few], {}, rules(), COMMAND).findings[1]
    assert "Behind top k loss threshold" in behind.claim
    assert behind.reproduce.endswith("--defence theft/top_k")
    assert "top k" not in judge([plain], {}, rules(), COMMAND).findings[0].claim


def test_shadows_are_guarded_too_and_a_guard_has_the_members_it_asks_for() -> None:
    seen = list[tuple[int, int]]()

    def watched(model: nn.Module, *, members: object, public: object, seed: int = 0) -> Defended:
        seen.append((len(members[1]), len(public[1])))  # pyright: ignore
        return model

    trial = evaluate(lira, subject(by_heart, 120), models=4, defence=watched)
    # tried on a few rows; then the target, the control and four shadows; of test rows a half, 60 of 120 of a subject
    assert seen == [(20, 20)] + [(60, 60)] * 6
    assert trial.estimates["auc"].low > 0.7


class Mute(nn.Module):
    """Answers its members alike, which gives them away, and others as before."""

    def __init__(self, model: nn.Module, members: Rows) -> None:
        super().__init__()
        self.model, self.known = model, fingerprint_rows(members[0])

    def forward(self, x: Tensor) -> Tensor:
        return torch.where(torch.isin(fingerprint_rows(x), self.known)[:, None], 0.0, 1.0) * self.model(x)


def mute(model: nn.Module, *, members: Rows) -> Defended:
    return Mute(model, members)


def test_the_control_is_guarded_with_its_own_members_so_that_it_excuses_no_guard_that_gives_members_away() -> None:
    trial = evaluate(loss_threshold, subject(by_heart, 200), defence=mute)
    assert trial.status == "ok", trial.reason
    assert trial.estimates["auc"].low > 0.55
    assert trial.estimates["control_auc"].low <= 0.5 <= trial.estimates["control_auc"].high


def never(data: Rows) -> nn.Module:
    """A recipe that must not be used."""
    raise AssertionError("trained")


def fresh(model: nn.Module, *, net: object) -> Defended:
    """A guard that trains a network of its own."""
    raise AssertionError("guarded")


def known(model: nn.Module, *, public: Rows) -> Defended:
    """A guard that looks at rows that nobody learnt from."""
    assert len(public[1]) >= 20
    return model


def idle_subject(**more: object) -> Subject:
    """Whose training must not be begun."""
    return replace(subject(untaught, 80), recipe=never, **more)  # pyright: ignore


@pytest.mark.parametrize(
    ("guard", "said"),
    [(fresh, "trains a network: give the subject its `net`"), (find("evasion/jpeg"), "about inputs of its own")],
)
def test_a_guard_that_cannot_stand_before_shadows_is_refused_before_anything_is_trained(
    guard: Method, said: str
) -> None:
    for trial in (evaluate(lira, idle_subject(), models=4, defence=guard), evaluate(guard, idle_subject(), models=4)):
        assert (trial.status, said in trial.reason) == ("skipped", True)


def test_before_the_subject_s_own_model_only_a_guard_without_its_net_is_refused() -> None:
    trial = evaluate(loss_threshold, idle_subject(), defence=fresh)
    assert (trial.status, "give the subject its `net`" in trial.reason) == ("skipped", True)
    assert evaluate(loss_threshold, subject(by_heart, 100), defence=find("evasion/jpeg")).status == "ok"


def test_rows_of_nobody_are_asked_for_where_a_guard_needs_them_and_before_anything_is_trained() -> None:
    rows = noise(80)
    for run in (partial(evaluate, lira, defence=known), partial(evaluate, known)):
        with pytest.raises(ValueError, match="expected 20 public rows or more"):
            run(idle_subject(test=rows, train=rows), models=4)
    alike = subject(by_heart, 80, test=rows, train=rows)
    assert evaluate(lira, alike, models=4, defence=same).status == "ok"
    assert evaluate(same, alike, models=4).status == "ok"


def test_answers_of_an_endpoint_are_guarded_and_labels_alone_are_not() -> None:
    given = subject(by_heart, 120)
    model = given.model
    assert isinstance(model, nn.Module)
    behind = replace(given, model=Oracle(lambda x: model(x).softmax(1), "scores"))
    through, direct = (evaluate(loss_threshold, one, defence=find("theft/rounding")) for one in (behind, given))
    torch.testing.assert_close(through.evidence["ranked"], direct.evidence["ranked"], atol=0.1, rtol=0.05)
    labels = replace(given, model=Oracle(model, "labels"))
    trial = evaluate(find("privacy/label_only"), labels, defence=find("theft/rounding"))
    assert (trial.status, "labels only" in trial.reason) == ("skipped", True)


def test_the_plan_of_the_package_asks_for_them() -> None:
    from buckler import plan as plans

    jobs = plans.jobs(plans.read("privacy"), {})
    assert {"privacy/memguard", "privacy/noise", "privacy/class_threshold"} <= {job.path for job in jobs}
    assert len([job for job in jobs if job.path == "privacy/lira" and "defence" in job.asked]) == 2
    assert {job.aim[2] for job in jobs if job.path in GUARDS} == {"which rows were learnt from"}
