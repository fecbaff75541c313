"""Implants, inspections and repairs, evaluated and judged: each believed only beside its control."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from buckler.catalog import find
from buckler.data import Rows
from buckler.dice import fingerprint_rows
from buckler.embedding import embedded
from buckler.encoders import _inspected, _repaired
from buckler.encoders._backdoor import ADAPTIVE
from buckler.encoders._judged_backdoor import of_backdoor
from buckler.encoders._setting import Setting
from buckler.encoders.decree import decree
from buckler.encoders.distill import distill
from buckler.encoders.evaluate import evaluate
from buckler.encoders.ssl_cleanse import ssl_cleanse
from buckler.findings import rules
from buckler.kinds import Anomaly, Implant, Implanted, Repaired
from buckler.stats import agree, recompute
from buckler.subject import Subject
from buckler.target import Oracle
from buckler.trial import Trial, load, save

QUICK = partial(decree, steps=100, batch=32)


@pytest.fixture(scope="module")
def own(subject: Subject, encoder: nn.Module) -> Subject:
    """A subject that brings its encoder, and says what it learnt from."""
    return replace(subject, encoder=encoder)


@pytest.fixture(scope="module")
def attack(planted: Implanted) -> Implant:
    """Puts in the backdoor that is known to work, at no cost."""

    def known(model: nn.Module, data: Rows) -> Implanted:
        del model, data
        return planted

    return known


@pytest.fixture(scope="module")
def implant(own: Subject, attack: Implant) -> Trial:
    return evaluate(attack, own, rows=300)


@pytest.fixture(scope="module")
def idled(own: Subject, attack: Implant) -> Trial:
    return evaluate(idle, own, rows=300, attack=attack)


def sound(trial: Trial) -> None:
    assert trial.estimates
    for name, estimate in trial.estimates.items():
        assert agree(estimate, recompute(estimate, trial.evidence)), name


def nothing(model: nn.Module, data: Rows, *, seed: int = 0) -> Implanted:
    """No backdoor at all."""
    del data, seed
    return Implanted(copy.deepcopy(model), torch.clone, torch.zeros_like)


def blind(encoder: nn.Module, x: Tensor) -> Anomaly:
    """Never flags."""
    del encoder
    return Anomaly(torch.zeros(1), torch.zeros(1, dtype=torch.bool), torch.ones(1, 1, 8, 8), x[:1])


def wary(encoder: nn.Module, x: Tensor) -> Anomaly:
    """Always flags."""
    return blind(encoder, x)._replace(flagged=torch.ones(1, dtype=torch.bool))


def obeys(encoder: nn.Module, x: Tensor, made: Implanted) -> bool:
    """Whether inputs with the trigger are much more alike than without."""
    spread, usual = (float(embedded(encoder, each).std(0).mean()) for each in (made.trigger(x.float()), x))
    return spread < usual / 2


def idle(encoder: nn.Module, x: Tensor) -> Repaired:
    """Repairs nothing."""
    del x
    return encoder


def test_an_implant_is_measured_beside_the_encoder_as_it_was(implant: Trial) -> None:
    sound(implant)
    e = implant.estimates
    assert implant.status == "ok"
    assert all(check.passed for check in implant.checks)
    assert e["success"].value > 0.9
    assert e["pairs_success"].value > 0.9
    assert e["control_success"].value < 0.2
    assert abs(e["kept"].value) < 0.06
    bad, clean = (implant.evidence[f"{name}_points"] for name in ("triggered", "clean"))
    assert float((bad - bad.mean(0)).norm(dim=1).mean()) < float((clean - clean.mean(0)).norm(dim=1).mean()) / 2


def test_no_implant_has_no_effect(own: Subject) -> None:
    trial = evaluate(nothing, own, rows=300)
    assert trial.estimates["beyond"].value == 0
    assert bool((trial.evidence["kept"] == 0).all())


def test_an_inspection_is_believed_with_its_power_and_its_null(own: Subject, attack: Implant) -> None:
    trial = evaluate(QUICK, own, rows=300, attack=attack, encoder_steps=60)
    sound(trial)
    assert trial.status == "ok", trial.reason
    assert not bool(trial.evidence["flagged"].any())
    assert bool(trial.evidence["planted_flagged"].all())
    assert not bool(trial.evidence["control_flagged"].any())
    verdicts, _ = of_backdoor([trial], rules(), "buckler run {method}")
    (found,) = verdicts.findings
    assert found.state == "clear"
    assert "the encoder that was given" in found.claim
    assert [figure.name for figure in found.figures] == ["inverted-triggers"]


@pytest.mark.parametrize(
    ("method", "says"), [(blind, "missed"), (wary, "nothing to compare|clean is flagged|There is no")]
)
def test_an_inspection_that_misses_or_always_flags_decides_nothing(
    own: Subject, attack: Implant, method: object, says: str
) -> None:
    bodiless = replace(own, body=None, net=None)
    trial = evaluate(method, bodiless, rows=300, attack=attack)  # pyright: ignore[reportArgumentType]
    assert trial.status == "inconclusive"
    assert any(word in trial.reason for word in says.split("|"))
    verdicts, rows = of_backdoor([trial], rules(), "buckler run {method}")
    assert not verdicts.findings
    assert not rows
    assert verdicts.not_measured


def test_a_backdoor_that_does_not_work_shows_nothing(own: Subject) -> None:
    for method in (blind, idle):
        trial = evaluate(method, own, rows=300, attack=nothing, encoder_steps=2)
        assert trial.status == "inconclusive"
        assert "nothing to find" in trial.reason


def test_an_encoder_that_was_pre_trained_here_is_its_own_null(subject: Subject, tmp_path: Path) -> None:
    trial = evaluate(blind, subject, rows=300, attack=nothing, encoder_steps=2)
    assert torch.equal(trial.evidence["score"], trial.evidence["control_score"])
    assert trial.params["encoder"] == "an encoder pre-trained on the rows"
    save(trial, tmp_path / "trial")
    sound(load(tmp_path / "trial"))


def test_a_repair_is_measured_on_a_backdoor_and_on_a_clean_encoder(
    own: Subject, implant: Trial, attack: Implant, idled: Trial
) -> None:
    repairs = [evaluate(partial(ssl_cleanse, steps=100, epochs=20), own, rows=300, attack=attack), idled]
    for trial in repairs:
        sound(trial)
        assert trial.status == "ok"
    good, none = (trial.estimates for trial in repairs)
    assert good["success"].value < 0.5 < 0.9 < none["success"].value
    assert none["cost"].value == none["kept"].value == 0
    assert abs(good["cost"].value) < 0.08
    verdicts, (row,) = of_backdoor([implant, *repairs], rules(), "buckler run {method}")
    assert [found.id for found in verdicts.findings] == ["encoders/backdoor", "encoders/backdoor/repair"]
    assert row.problem == "backdoor"
    assert row.attack == implant.method
    assert row.defence.startswith("encoders/ssl_cleanse")
    assert row.left == good["success"]
    first = verdicts.findings[0]
    assert [figure.name for figure in first.figures] == ["trigger", "backdoor-features"]
    assert "task pairs" in first.claim


def test_a_repair_has_the_users_images_and_costs_what_it_does_to_a_clean_encoder(
    own: Subject, attack: Implant, learnt: Rows
) -> None:
    given = list[Tensor]()

    def ruin(encoder: nn.Module, x: Tensor) -> Repaired:
        """Leaves of an image how light it is."""
        del encoder
        given.append(x)
        return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())

    trial = evaluate(ruin, own, rows=300, attack=attack)
    assert [torch.isin(fingerprint_rows(x), fingerprint_rows(learnt[0])).any() for x in given] == [False, False]
    assert trial.estimates["cost"].high < -0.3
    assert [check.passed for check in trial.checks if check.name == _repaired.HARMLESS] == [False]


@pytest.fixture
def both(monkeypatch: pytest.MonkeyPatch, planted: Implanted, blended: Implanted) -> None:
    """Backdoors that are known to work, of who does not know the defence and of who does, at no cost."""

    def taken(made: Implanted) -> Callable[[Setting], Implant]:
        def known(model: nn.Module, data: Rows) -> Implanted:
            del model, data
            return made

        return lambda _: known

    for module in (_repaired, _inspected):
        monkeypatch.setattr(module, "attack_of", taken(planted))
        monkeypatch.setattr(module, "knowing", taken(blended))


@pytest.mark.usefixtures("both")
def test_a_repair_is_worth_what_it_is_worth_against_who_knows_it(
    own: Subject, encoder: nn.Module, planted: Implanted
) -> None:
    def narrow(model: nn.Module, x: Tensor) -> Repaired:
        """Mends what obeys a square, and nothing else."""
        return copy.deepcopy(encoder) if obeys(model, x, planted) else model

    trial = evaluate(narrow, own, rows=300)
    sound(trial)
    assert trial.status == "ok", trial.reason
    e = trial.estimates
    assert e["left"].value <= 0.02
    assert e["success"].value < 0.2 < 0.8 < e["adaptive_success"].value
    assert e["adaptive_left"].value == pytest.approx(e["adaptive_success"].value - e["adaptive_spared_success"].value)
    assert e["adaptive_left"].low > 0.3
    verdicts, (row,) = of_backdoor([trial], rules(), "buckler run {method}")
    assert row.left == e["adaptive_success"]
    spared = f"{e['adaptive_spared_success'].value:.1%}"
    assert row.defence.endswith(f"attacked by who knows it (a clean encoder repaired alike: {spared})")
    assert f"(clean encoder: {e['control_success'].value:.1%})" in row.says
    assert f"leaves least: {e['adaptive_success'].value:.1%}, more than the" in verdicts.findings[0].claim
    assert next(iter(verdicts.findings[0].estimates.values())) == e["adaptive_success"], "what a report shows first"


@pytest.mark.usefixtures("both")
def test_an_inspection_that_misses_who_knows_it_clears_nothing(own: Subject) -> None:
    trial = evaluate(QUICK, own, rows=300, encoder_steps=60)
    sound(trial)
    assert trial.status == "ok", trial.reason
    assert bool(trial.evidence["planted_flagged"].all())
    assert not bool(trial.evidence["adaptive_flagged"].any())
    assert trial.estimates["adaptive_success"].value > 0.8
    (found,) = of_backdoor([trial], rules(), "buckler run {method}")[0].findings
    assert found.state == "not measured"
    assert "is not flagged either" in found.claim
    assert f"and {trial.estimates['adaptive_without_success'].value:.1%} without it" in found.claim


def fooling(data: Rows) -> Callable[[nn.Module, Rows], Implanted]:
    """No backdoor at all, and a trigger that every encoder obeys: an image of class 0."""
    zero = data[0][data[1] == 0][:1]

    def put(model: nn.Module, data: Rows) -> Implanted:
        del data
        return Implanted(copy.deepcopy(model), lambda x: 0.95 * zero + 0.05 * x, torch.zeros_like)

    return put


def test_a_trigger_that_clean_encoders_obey_is_no_backdoor_of_who_knows(
    own: Subject, attack: Implant, learnt: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module, method in ((_repaired, idle), (_inspected, blind)):
        monkeypatch.setattr(module, "attack_of", lambda _: attack)
        monkeypatch.setattr(module, "knowing", lambda _: fooling(learnt))
        trial = evaluate(method, own, rows=300, encoder_steps=2)
        (known,) = (check for check in trial.checks if check.name == ADAPTIVE)
        assert trial.estimates["adaptive_success"].value > 0.9
        assert not known.passed
        assert known.says in trial.reason


def test_a_flagged_encoder_is_a_finding_whatever_who_knows_the_inspection_could_hide(
    own: Subject, planted: Implanted, attack: Implant, monkeypatch: pytest.MonkeyPatch
) -> None:
    def narrow(encoder: nn.Module, x: Tensor) -> Anomaly:
        """Flags what obeys a square."""
        return blind(encoder, x)._replace(flagged=torch.tensor([obeys(encoder, x, planted)]))

    monkeypatch.setattr(_inspected, "attack_of", lambda _: attack)
    monkeypatch.setattr(_inspected, "knowing", lambda _: nothing)
    bad = evaluate(narrow, replace(own, encoder=planted.model), rows=300, encoder_steps=2)
    assert bad.status == "ok", bad.reason
    assert [check.name for check in bad.checks if not check.passed] == [ADAPTIVE]
    (found,) = of_backdoor([bad], rules(), "buckler run {method}")[0].findings
    assert found.state == "found"
    assert found.severity.value == "high"
    clean = evaluate(narrow, own, rows=300, encoder_steps=2)
    assert clean.status == "inconclusive"


def leaving(idled: Trial, **values: float) -> Trial:
    """A repair of which these are the estimates."""
    found = {name: replace(idled.estimates["left"], value=value, low=-1.0, high=1.0) for name, value in values.items()}
    return replace(idled, estimates=idled.estimates | found)


def test_the_best_repair_leaves_least_beyond_what_a_clean_encoder_obeys(idled: Trial) -> None:
    few, many = leaving(idled, success=0.5, left=0.1), leaving(idled, success=0.4, left=0.4)
    for repairs in ((few, many), (many, few)):
        assert of_backdoor(repairs, rules(), "buckler run {method}")[1][0].left == few.estimates["success"]


def test_a_repair_that_costs_more_than_it_takes_away_is_not_the_best(idled: Trial) -> None:
    dear, cheap = leaving(idled, success=0.2, left=0.1, cost=-0.5), leaving(idled, success=0.4, left=0.3, cost=0.0)
    for repairs in ((dear, cheap), (cheap, dear)):
        assert of_backdoor(repairs, rules(), "buckler run {method}")[1][0].left == cheap.estimates["success"]


def test_the_worse_backdoor_is_the_one_of_which_more_is_left_beyond_a_clean_encoder(idled: Trial) -> None:
    plain = {"success": 0.5, "left": 0.5, "spared_success": 0.0}
    trial = leaving(idled, **plain, adaptive_success=0.9, adaptive_left=0.1, adaptive_spared_success=0.8)
    (row,) = of_backdoor([trial], rules(), "buckler run {method}")[1]
    assert row.left == trial.estimates["success"]
    assert "who knows it" not in row.defence


def test_an_attack_that_is_named_is_the_only_one(implant: Trial, idled: Trial) -> None:
    assert not any(name.startswith("adaptive") for name in (*idled.estimates, *idled.params))
    assert "idle (a clean" in of_backdoor([implant, idled], rules(), "buckler run {method}")[1][0].defence


def test_a_student_needs_a_body(own: Subject, attack: Implant) -> None:
    trial = evaluate(distill, replace(own, body=None, net=None), rows=300, attack=attack)
    assert trial.status == "skipped"
    assert "give the subject a `body`" in trial.reason


def test_only_answers_are_not_enough(own: Subject, encoder: nn.Module) -> None:
    asked = replace(own, encoder=Oracle(encoder, "features"))
    for path in ("bad_encoder", "decree", "distill"):
        assert evaluate(find(f"encoders/{path}"), asked, rows=300).status == "skipped"


def test_an_attack_of_another_kind_is_refused(own: Subject) -> None:
    with pytest.raises(ValueError, match="puts a backdoor in"):
        evaluate(distill, own, rows=300, attack=find("encoders/stolen_encoder"))
