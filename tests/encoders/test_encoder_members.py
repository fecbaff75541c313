"""Membership and tracing of encoders, evaluated and judged: one that remembers, and one that learns nothing."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import cache, partial
from typing import Any

import pytest
import torch
from remembering_worlds import Remembering, forgetting, images, remembering, rows, subject
from torch import nn

from buckler import claims
from buckler.data import Rows
from buckler.dice import fingerprint_rows
from buckler.encoders import _pretrained, _traced
from buckler.encoders._inferred import SHADOWS, STOPS, _shadows
from buckler.encoders._scene import LEAST
from buckler.encoders._setting import Setting
from buckler.encoders._shadowed import Known
from buckler.encoders._traced import FEWER, _owned, wrong
from buckler.encoders.data_tracing import OTHERS, data_tracing
from buckler.encoders.encoder_mi import encoder_mi
from buckler.encoders.evaluate import evaluate
from buckler.encoders.judge import judge
from buckler.encoders.lpla import lpla
from buckler.encoders.simclr import simclr
from buckler.findings import Finding, Severity, rules
from buckler.kinds import Owned
from buckler.method import Method, describe
from buckler.subject import Subject
from buckler.target import Meter, Oracle
from buckler.trial import Trial


@pytest.fixture(scope="module", autouse=True)
def quickly() -> Iterator[None]:
    """Fewer draws: p-values down to 1 in 500, where claims are at 1 in 100; ten owners; one probe of few labels."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(claims, "SHUFFLES", 499)
        patch.setattr(_pretrained, "DRAWS", 1)
        patch.setattr(_traced, "OWNERS", 10)
        yield


MI, TRACED = partial(encoder_mi, asked=4), partial(data_tracing, asked=4)


@cache
def trial(method: Method, pretraining: Method) -> Trial:
    return evaluate(method, subject(), rows=300, encoder_steps=2, pretraining=pretraining)


def judged(*trials: Trial) -> dict[str, Finding]:
    return {found.id: found for found in judge(trials, {}, rules(), "buckler run {method}").findings}


def test_an_encoder_that_remembers_gives_its_images_away() -> None:
    made = trial(MI, remembering)
    assert made.status == "ok"
    assert made.estimates["auc"].low > 0.55
    assert made.estimates["auc"].n == 300
    assert made.estimates["control_auc"].low < 0.5 < made.estimates["control_auc"].high
    assert made.cost.queries == 4 * (300 + 2 * 75)
    assert all(f"stopped_{stop:g}_auc" in made.estimates for stop in STOPS)
    found = judged(made)
    assert found["encoders/membership"].state == "found"
    assert found["encoders/membership"].severity >= Severity.low
    grid = found["encoders/ten"].grid
    assert any("2. Membership" in line[0] and "area under the curve" in line[2] for line in grid)


def test_an_encoder_that_learnt_nothing_gives_nobody_away() -> None:
    for method in (MI, lpla):
        made = trial(method, forgetting)
        assert made.status == "ok"
        assert made.estimates["auc"].low < 0.5 < made.estimates["auc"].high
        assert judged(made)["encoders/membership"].state != "found"


def test_the_subjects_own_encoder_is_attacked_by_its_training_rows() -> None:
    train = rows(300, 3)
    for own in (Remembering(train[0], strength=16.0), Oracle(Remembering(train[0], strength=16.0), "features")):
        whole = (train[0] * 255).round().to(torch.uint8), train[1]  # test rows are floats
        given = replace(subject(), encoder=own, train=whole)
        made = evaluate(MI, given, rows=200, encoder_steps=2, pretraining=remembering)
        assert made.status == "ok", made.reason
        assert made.estimates["auc"].low > 0.55
        assert not any(name.startswith("stopped") for name in made.estimates)


def test_a_control_that_tells_two_kinds_of_rows_apart_decides_nothing() -> None:
    """Test rows that are darker than those for training: nobody need have learnt anything."""
    x, y = rows(400, 4)
    given = replace(subject(), encoder=Remembering(images(50, 6)), test=(x / 3, y))
    made = evaluate(partial(lpla, calibrated=False), given, rows=200, encoder_steps=2, pretraining=remembering)
    assert made.status == "inconclusive"
    assert "something else than membership" in made.reason
    assert "encoders/membership" not in judged(made)


def test_owners_claim_nobody_who_did_not_learn_from_their_images() -> None:
    made = trial(TRACED, forgetting)
    assert made.status == "ok"
    assert made.estimates["false"].low < 0.02
    assert made.estimates["traced"].value <= 0.1
    assert len(made.evidence["p_false"]) == 2 * 10
    assert judged(made)["encoders/tracing"].severity == Severity.info


@pytest.mark.parametrize("reveals", [False, True])
def test_what_is_asked_of_the_encoder_is_counted_once(reveals: bool) -> None:
    """And what is asked of encoders that were made here is not counted."""
    train, asked = rows(300, 3), list[int]()
    model = Remembering(train[0])
    model.register_forward_hook(lambda _module, given, _out: asked.append(len(given[0])))
    own = Oracle(model, "features") if reveals else model
    made = evaluate(TRACED, replace(subject(), encoder=own, train=train), rows=200, pretraining=remembering)
    if isinstance(own, Oracle):
        assert own.asked == sum(asked)
        assert 0 <= own.asked - made.cost.queries <= 20, "what tells encoders apart, before anything else"
    else:
        few, many = LEAST, int(made.evidence["images"])
        assert made.cost.queries == 10 * 4 * (2 * (2 * many + OTHERS) + 2 * max(few, many // FEWER) + OTHERS)


def test_owners_of_what_was_learnt_show_it() -> None:
    made = trial(TRACED, remembering)
    assert made.estimates["traced"].low > 0.3
    assert made.estimates["false"].low < 0.02
    found = judged(made, replace(made, method="encoders/density_inference"))
    assert "show it by" in found["encoders/tracing"].claim
    assert "encoders/tracing/density-inference" in found
    assert any("1. Data tracing" in line[0] and "traced" in line[2] for line in found["encoders/ten"].grid)


@pytest.mark.parametrize(
    ("name", "hits", "accuses"),
    [("spared", 3, True), ("spared", 2, False), ("independent", 3, False), ("independent", 20, True)],
)
def test_claims_that_accuse_by_chance_are_graded(name: str, hits: int, accuses: bool) -> None:
    """Owners who divide what nobody saw are independent; those whose rows are drawn from the same two sets are not."""
    flags = torch.arange(20) < hits
    assert wrong({"spared": flags & (name == "spared"), "independent": flags & (name != "spared")}) == accuses


def test_no_image_is_published_and_kept_back(monkeypatch: pytest.MonkeyPatch) -> None:
    def apart(setting: Setting, published: Rows, kept: Rows, *others: Any) -> Owned:
        assert not torch.isin(fingerprint_rows(published[0]), fingerprint_rows(kept[0])).any()
        return _owned(setting, published, kept, *others)

    monkeypatch.setattr(_traced, "_owned", apart)
    made = evaluate(partial(data_tracing, asked=2), subject(), rows=300, encoder_steps=2, pretraining=forgetting)
    assert made.status == "ok"


def test_claims_that_accuse_are_a_finding() -> None:
    made = trial(TRACED, forgetting)
    everybody = torch.ones(20, dtype=torch.bool)
    bad = replace(made, evidence=made.evidence | {"spared": everybody})
    bad = replace(bad, estimates=made.estimates | {"false": made.estimates["correct"]})
    assert judged(bad)["encoders/tracing"].severity == Severity.high


def test_what_is_not_known_is_something_else() -> None:
    given = subject()
    data = rows(80)
    setting = Setting(
        method=MI, described=describe(MI), subject=replace(given, body=lambda: nn.Flatten()), rows=100,
        train_rows=100, encoder_steps=1, pretraining=remembering, queries=(), ball=None, share=None, attack=None,
        models=1, training_epochs=1, seed=0, keep=None, device=torch.device("cpu"), meter=Meter(), told=lambda _: None,
    )  # fmt: skip
    same, other = (_shadows(setting, data, Known(known, known, known)) for known in (True, False))
    assert len(same.encoders) == len(other.encoders) == SHADOWS
    assert all(isinstance(one, Remembering) for one in same.encoders)
    assert not any(isinstance(one, Remembering) for one in other.encoders)
    assert torch.allclose(other.unseen, 1 - same.unseen.rot90(1, (2, 3)))


def test_what_cannot_be_asked_is_skipped() -> None:
    lacking: Subject = replace(subject(), train=None)
    assert "give the subject" in evaluate(MI, lacking, pretraining=simclr).reason
    few = evaluate(MI, subject(), rows=30, pretraining=remembering)
    assert few.status == "skipped"
    assert "ask for more rows" in few.reason
    assert evaluate(TRACED, subject(), rows=30, pretraining=remembering).status == "skipped"
