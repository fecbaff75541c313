"""The judge: which findings trials become, and what they rest on."""

from __future__ import annotations

from dataclasses import replace
from functools import cache, partial

import pytest
import torch
from problems import pixel, stripes, subject, told
from torch import Tensor, nn

from buckler import stats
from buckler.data import Poisoned, Rows
from buckler.findings import Finding, Severity, Verdicts, rules
from buckler.kinds import Anomaly, Cultivated, Suspicion
from buckler.poisoning.evaluate import evaluate
from buckler.poisoning.judge import judge
from buckler.threat import Share, Threat
from buckler.trial import Check, Trial, load, save

ATTACK = partial(pixel)
TEN = Share(0.1)


def grow(data: Rows, *, net: object, seed: int = 0) -> Cultivated:
    return told(data, net=net, seed=seed)


def bright(model: nn.Module, data: Rows) -> Suspicion:
    del model
    score = data[0][:, 0, -1, -1]
    return Suspicion(score, score > 0.9)


def bright_rows(data: Rows) -> Suspicion:
    return bright(nn.Identity(), data)


def none(model: nn.Module, clean: Rows) -> Anomaly:
    return Anomaly(torch.tensor([0.1, 0.2, 0.3]), torch.zeros(3, dtype=torch.bool))


def second(model: nn.Module, clean: Rows) -> Anomaly:
    flagged = torch.tensor([False, True, False])
    return Anomaly(torch.tensor([0.1, 9.0, 0.3]), flagged, torch.rand(3, 1, 8, 8), torch.rand(3, 1, 8, 8))


def upside_down(data: Rows, *, share: Share, seed: int = 0) -> Poisoned:
    """An attack on accuracy: other labels on a share of the rows."""
    x, y = data
    rows = torch.arange(len(y)) < share.of(len(y))
    return Poisoned(x, torch.where(rows, (y + 1) % 3, y), rows, y)


@cache
def attacked() -> Trial:
    return evaluate(ATTACK, subject(), share=TEN, rows=150)


@cache
def defended() -> Trial:
    return evaluate(grow, subject(), share=TEN, attack=ATTACK, rows=150)


def judged(*trials: Trial) -> Verdicts:
    named = [replace(trial, fingerprint=f"{index}") for index, trial in enumerate(trials)]
    return judge(named, {}, rules(), "buckler run {method} --demo digits --seed 0")


def flags(hits: int, rows: int) -> Tensor:
    """The first `hits` of `rows` rows."""
    return torch.arange(rows) < hits


def made(method: str, kind: str, params: dict[str, object], evidence: dict[str, Tensor], check: Check) -> Trial:
    """A trial with the estimates that every evaluation of the area has, out of evidence written by hand."""
    shares = {"correct": "accuracy", "success": "attack_success", "recovered": "recovered_accuracy"}
    found = {
        f"{prefix}{name}": stats.share(evidence[f"{prefix}{key}"], f"{prefix}{key}")
        for prefix in ("", "control_", "undefended_")
        for key, name in shares.items()
        if f"{prefix}{key}" in evidence
    }
    for key, other in (("correct", "accuracy_change"), ("success", "attack_success_change")):
        if f"undefended_{key}" in evidence:
            evidence[other] = evidence[key].to(torch.int8) - evidence[f"undefended_{key}"].to(torch.int8)
            found[other] = stats.difference(evidence[other], other)
    return Trial(
        method=method,
        kind=kind,
        params={"rows": 1000, **params},
        threat=Threat("the training data", "training data", "5%", "a label"),
        subject={"name": "m", "model": "a", "data": "b"},
        seed=0,
        status="ok",
        checks=(check,),
        estimates=found,
        evidence=evidence,
    )


def struck(
    success: int,
    control: int = 0,
    rows: int = 400,
    *,
    method: str = "poisoning/badnets",
    share: str = "5%",
    kind: str = "poison",
    **knobs: object,
) -> Trial:
    """An attack after which `success` of `rows` triggered rows go as wanted, and `control` of them anyway."""
    evidence = {
        "success": flags(success, rows),
        "recovered": ~flags(success, rows),
        "correct": flags(950, 1000),
        "control_success": flags(control, rows),
        "control_recovered": ~flags(control, rows),
        "control_correct": flags(960, 1000),
        "touched": flags(50, 1000),
    }
    ignores = Check("a clean model ignores the trigger", control <= 0.3 * rows, "The trigger fools a clean model.")
    where = {"share": share} if kind == "poison" else {}
    return made(method, kind, {**where, **knobs}, evidence, ignores)


def tried(
    method: str, attack: object = "poisoning/badnets", share: str = "5%", *, before: int = 390, after: int = 4,
    correct: int = 940, harmless: bool = True
) -> Trial:  # fmt: skip
    """A defence of 1,000 test rows after which `after` of 400 triggered rows go as wanted, and `before` without it."""
    evidence = {
        "success": flags(after, 400),
        "undefended_success": flags(before, 400),
        "correct": flags(correct, 1000),
        "undefended_correct": flags(950, 1000),
    }
    check = Check("the defence is harmless", harmless, "It costs much.")
    return made(method, "cultivate", {"share": share, "attack": attack}, evidence, check)


def pipeline(*trials: Trial) -> Finding:
    return finding(judged(*trials), "poisoning/pipeline")


def finding(verdicts: Verdicts, name: str) -> Finding:
    return next(found for found in verdicts.findings if found.id == name)


def test_a_pipeline_that_learns_a_backdoor_is_a_grave_finding() -> None:
    found = finding(judged(attacked()), "poisoning/pipeline")
    assert found.state == "found"
    assert found.severity >= Severity.high
    assert "touches 10.0% of the training rows," in found.claim
    assert found.estimates["attack success"] == attacked().estimates["attack_success"]
    assert {figure.name for figure in found.figures} == {"examples", "attack-success"}
    assert found.reproduce.startswith("buckler run")
    assert "--share 10%" in found.reproduce


def test_a_defence_that_was_tried_is_the_remedy_with_its_figures() -> None:
    verdicts = judged(attacked(), defended())
    found = finding(verdicts, "poisoning/pipeline")
    assert found.remedied["attack success"].value < 0.1
    assert found.remedy_methods == (defended().method,)
    assert "brought attack success from" in finding(verdicts, "poisoning/defences").claim


def test_a_training_that_learns_nothing_false_is_clear() -> None:
    poor = attacked()
    none_won = torch.zeros_like(poor.evidence["success"])
    safe = replace(
        poor,
        evidence={**poor.evidence, "success": none_won},
        estimates={**poor.estimates, "attack_success": stats.share(none_won, "success")},
    )
    found = finding(judged(safe), "poisoning/pipeline")
    assert (found.state, found.severity) == ("clear", Severity.info)


def test_severity_is_of_what_the_poison_did_beyond_a_clean_model() -> None:
    assert pipeline(struck(392)).severity is Severity.critical
    fooled = pipeline(struck(392, control=392))
    assert (fooled.state, fooled.severity) == ("not measured", Severity.info)
    assert "fools a clean model" in fooled.claim
    assert pipeline(struck(400, control=160)).severity is Severity.high, "60 points, whatever the success"
    assert pipeline(struck(4, control=4)).state == "clear"


def test_rows_too_few_to_tell_anything_are_neither_a_pass_nor_a_finding() -> None:
    few = struck(0, rows=5)
    assert pipeline(few).state == "not measured"
    verdicts = judged(few, struck(0, share="1%"))
    assert finding(verdicts, "poisoning/pipeline").state == "clear"
    assert [item.what for item in verdicts.not_measured] == ["poisoning/badnets at 5%"]


def test_the_worst_attack_is_the_one_with_the_gravest_severity() -> None:
    trials = [
        struck(236),
        struck(22, rows=40, method="poisoning/blended"),
        struck(2, method="poisoning/sig"),
        struck(6, method="poisoning/wanet"),
    ]
    alone = [pipeline(trial) for trial in trials]
    together = pipeline(*trials)
    assert together.severity is max(one.severity for one in alone)
    assert together.claim.startswith("When poisoning/blended touches"), "its interval reaches furthest"
    assert together.because in {one.because for one in alone}


def test_an_implant_says_nothing_of_what_the_training_learns() -> None:
    verdicts = judged(struck(2), struck(400, method="poisoning/trojan", kind="implant"))
    found = finding(verdicts, "poisoning/pipeline")
    assert (found.state, found.trials) == ("clear", ("0",))
    own = finding(verdicts, "poisoning/implant")
    assert (own.severity, own.trials, own.cell) == (Severity.info, ("1",), ("weights", "integrity"))
    assert not [f for f in judged(struck(9, kind="implant")).findings if f.id == "poisoning/pipeline"]


def test_the_claim_says_what_was_touched_and_not_what_was_asked() -> None:
    bare = struck(390, share="1%")
    more = replace(bare, evidence={**bare.evidence, "touched": flags(123, 1000)})
    assert "touches 12.3% of the training rows," in pipeline(more).claim
    covered = replace(bare, evidence={**more.evidence, "poisoned": flags(50, 1000)})
    assert "touches 5.0% of the training rows, and 7.3% more as covers" in pipeline(covered).claim


def test_the_remedy_was_tried_against_the_same_attack_at_the_same_share() -> None:
    others = (
        tried("poisoning/dlp", attack="poisoning/blended"),
        tried("poisoning/dlp", share="1%"),
        tried("poisoning/dlp", attack={"method": "poisoning/badnets", "size": 5}),
    )
    assert not pipeline(struck(390), *others).remedied
    found = pipeline(struck(390), *others, tried("poisoning/abl", after=20))
    assert found.remedy_methods == ("poisoning/abl",)
    assert found.remedied["attack success"].value == 0.05
    assert "Against poisoning/badnets at 5%, poisoning/abl brought" in found.remedy


def test_a_configured_attack_is_another_attack() -> None:
    small, large = struck(380, size=3), struck(390, size=5)
    answered = tried("poisoning/abl", attack={"method": "poisoning/badnets", "size": 5})
    assert pipeline(large, answered).remedied
    assert not pipeline(large, tried("poisoning/abl")).remedied
    assert not pipeline(small, answered).remedied
    assert pipeline(large).claim.startswith("When poisoning/badnets (size 5) touches")
    figure = next(f for f in pipeline(small, large).figures if f.name == "attack-success")
    assert "badnets (size 5) at 5%" in figure.alt
    assert "badnets at 5%" in figure.alt


def test_a_defence_that_gains_nothing_or_does_harm_is_no_remedy() -> None:
    useless, harmful = tried("poisoning/dlp", after=390), tried("poisoning/abl", correct=500, harmless=False)
    found = pipeline(struck(390), useless, harmful)
    assert (found.remedied, found.remedy_methods) == ({}, ())
    assert found.remedy.endswith("without harm: poisoning/dlp, poisoning/abl.")
    assert pipeline(struck(390), useless, harmful, tried("poisoning/asd")).remedy_methods == ("poisoning/asd",)


def test_every_attack_has_its_own_best_defence() -> None:
    trials = (
        tried("poisoning/dlp", after=100),
        tried("poisoning/abl", after=8),
        tried("poisoning/dlp", "poisoning/blended", after=40),
    )
    found = finding(judged(*trials), "poisoning/defences")
    assert found.claim.split(". ")[0].startswith("Against poisoning/blended at 5%, poisoning/dlp brought")
    assert "Against poisoning/badnets at 5%, poisoning/abl brought" in found.claim
    assert found.claim.count("Against") == 2
    assert found.estimates["attack success"].value == 0.1, "of the attack that is answered worst"


def test_an_attack_with_knobs_of_its_own_is_named_with_them() -> None:
    trial = evaluate(grow, subject(), share=TEN, attack=partial(pixel, seed=3), rows=150)
    found = finding(judged(trial), "poisoning/defences")
    assert found.claim.startswith("Against problems:pixel (seed 3) at 10%, ")
    assert found.reproduce == "", "no command configures an attack"


def test_detectors_that_were_tried_against_an_attack_are_told() -> None:
    found = finding(judged(evaluate(bright_rows, subject(), share=TEN, attack=ATTACK, rows=150)), "poisoning/defences")
    assert "flagged 100.0% of the poisoned rows and 0.0% of the others." in found.claim


def test_suspicious_rows_are_a_list_to_look_at_and_no_accusation() -> None:
    x, y = stripes(300)
    x[7, 0, -1, -1] = 1.0
    found = finding(judged(evaluate(bright, subject(train=(x, y)), rows=50)), "poisoning/data")
    assert found.severity is Severity.info
    assert found.tables["suspects.csv"].splitlines() == ["row,label,suspicion", f"7,{int(y[7])},1"]
    assert found.figures[0].name == "suspects"
    assert "not a proof" in found.claim


def test_no_list_is_promised_where_no_row_is_suspicious() -> None:
    found = finding(judged(evaluate(bright_rows, subject(), rows=50)), "poisoning/data")
    assert (found.state, found.tables, found.remedy) == ("clear", {}, "")
    assert found.claim.endswith("flags none of 300 training rows.")


def test_dynamics_of_suspected_rows_are_drawn() -> None:
    trial = evaluate(grow, subject(), rows=50)
    names = [figure.name for figure in finding(judged(trial), "poisoning/data").figures]
    assert names == ["suspects", "dynamics"]


@pytest.mark.parametrize(("method", "state"), [(none, "clear"), (second, "found")])
def test_a_model_is_inspected(method, state) -> None:
    found = finding(judged(evaluate(method, subject(), rows=50)), "poisoning/model")
    assert found.state == state
    if state == "found":
        assert found.severity is Severity.high
        assert "flags class 1" in found.claim
        assert found.figures[0].name == "triggers"


def test_lost_accuracy_is_a_finding_of_its_own() -> None:
    found = finding(judged(evaluate(upside_down, subject(), share=Share(0.6), rows=150)), "poisoning/availability")
    assert found.state == "found"
    assert found.estimates["accuracy lost"].value > 0.1


def test_a_finding_is_the_same_from_a_trial_that_was_kept(tmp_path) -> None:
    save(attacked(), tmp_path / "trial")
    assert pipeline(load(tmp_path / "trial")).claim == pipeline(attacked()).claim


def test_what_was_skipped_is_said() -> None:
    skipped = evaluate(ATTACK, subject(train=None), share=TEN, rows=50)
    verdicts = judged(skipped)
    assert not verdicts.findings
    assert "give the subject its `train`" in verdicts.not_measured[0].why
