"""The evaluator and the judge of reconstructions: what is rebuilt counts, what a prior gives does not."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from membership_worlds import SIDE, by_heart, net, noise, subject, untaught
from torch import Tensor, nn

from buckler.findings import Severity, rules
from buckler.kinds import Reconstructed
from buckler.privacy._gradients import Gradients
from buckler.privacy.evaluate import evaluate
from buckler.privacy.gradient_inversion import gradient_inversion
from buckler.privacy.judge import judge
from buckler.privacy.model_inversion import model_inversion
from buckler.stats import agree, recompute
from buckler.subject import Subject
from buckler.target import Oracle
from buckler.trial import Trial, load, save

COMMAND = "buckler run {method} --demo digits --seed 0"


def given() -> Subject:
    return replace(subject(untaught, 60), net=net)


def corners(many: int, seed: int) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    y = torch.randint(0, 4, (many,), generator=draw)
    x = 0.3 * torch.rand(many, 1, SIDE, SIDE, generator=draw)
    for row, label in enumerate(y.tolist()):
        x[row, :, 3 * (label // 2) :, 3 * (label % 2) :][:, :3, :3] += 0.7
    return x, y


@pytest.fixture(scope="module")
def from_updates() -> Trial:
    return evaluate(partial(gradient_inversion, steps=60), given(), rows=4, training_epochs=1)


@pytest.fixture(scope="module")
def from_weights() -> Trial:
    train, test = corners(120, 0), corners(60, 1)
    given = subject(by_heart, train=train, test=test, model=by_heart(train), net=net)
    return evaluate(partial(model_inversion, steps=80), given)


def test_rows_are_rebuilt_from_updates_and_not_by_their_class(from_updates: Trial) -> None:
    e = from_updates.estimates
    assert from_updates.status == "ok"
    assert e["rebuilt"].value == e["fresh_rebuilt"].value == 1
    assert e["control_rebuilt"].value == 0
    assert e["told"].value == 1
    assert e["psnr"].value > e["control_psnr"].value + 5
    assert from_updates.threat.sees == "weights and updates"
    assert {"noised_rebuilt", "pruned_rebuilt", "signed_rebuilt"} <= set(e)
    assert e["noised_psnr"].value < e["fresh_psnr"].value


def test_pictures_of_the_wrong_rows_are_not_counted() -> None:
    """A method that returns noise, or what it was not shown, rebuilds nothing."""

    def blind(model: nn.Module, update: Gradients, *, shape: tuple[int, ...], batch: int = 2) -> Reconstructed:
        return Reconstructed(torch.rand(batch, *shape, generator=torch.Generator().manual_seed(0)))

    trial = evaluate(blind, given(), rows=8, training_epochs=1)
    assert trial.estimates["rebuilt"].value <= 0.25
    assert trial.estimates["told"].value == 0
    assert trial.estimates["gain"].low <= 0
    assert "noised_rebuilt" not in trial.estimates


def test_what_is_no_picture_is_refused() -> None:
    def bright(model: nn.Module, update: Gradients, *, shape: tuple[int, ...], batch: int = 1) -> Reconstructed:
        return Reconstructed(torch.full((batch, *shape), 2.0))

    with pytest.raises(ValueError, match=r"expected rows \(1, 1, 6, 6\) in \[0, 1\]"):
        evaluate(bright, given(), rows=2, training_epochs=1)


def test_a_method_is_given_rows_only_through_their_update() -> None:
    seen: list[int] = []

    def watching(model: nn.Module, update: Gradients, *, shape: tuple[int, ...], batch: int = 3) -> Reconstructed:
        seen.append(len(update))
        return Reconstructed(torch.zeros(batch, *shape), torch.zeros(batch, dtype=torch.long))

    trial = evaluate(watching, given(), rows=6, training_epochs=1)
    assert seen == [4] * 4  # two updates of three rows, of two models, of four parameters each
    zeros = (trial.evidence["label"] == 0).view(2, 3).any(1)
    assert trial.evidence["told"].view(2, 3).any(1).tolist() == zeros.tolist()


def test_classes_are_drawn_and_recognised(from_weights: Trial) -> None:
    e = from_weights.estimates
    assert from_weights.status == "ok"
    assert e["recognised"].value == e["nearest"].value == 1
    assert e["control_recognised"].value < 1
    assert e["psnr"].value > e["control_psnr"].value


def test_every_number_is_recomputed(from_updates: Trial, from_weights: Trial, tmp_path: Path) -> None:
    for trial in (from_updates, from_weights):
        save(trial, tmp_path / trial.method.replace("/", "-"))
        loaded = load(tmp_path / trial.method.replace("/", "-"))
        assert loaded.estimates
        for estimate in loaded.estimates.values():
            assert agree(estimate, recompute(estimate, loaded.evidence))


def test_the_judge_shows_rows_beside_what_was_rebuilt(from_updates: Trial, from_weights: Trial) -> None:
    findings = {f.id: f for f in judge([from_updates, from_weights], {}, rules(), COMMAND).findings}
    updates, weights = findings["privacy/updates"], findings["privacy/inversion"]
    assert (updates.state, updates.severity) == ("found", Severity.high)
    assert updates.cell == ("training", "confidentiality")
    assert "rebuilds 100% of rows" in updates.claim
    assert "only signs sent" in updates.claim
    assert [figure.name for figure in updates.figures] == ["rebuilt"]
    assert updates.figures[0].svg.count("<image") == 4 * 5
    assert "--steps 60" in updates.reproduce
    assert weights.cell == ("weights", "confidentiality")
    assert [figure.name for figure in weights.figures] == ["classes"]


def test_a_control_that_is_as_good_leaves_nothing_found(from_updates: Trial) -> None:
    same = dict(from_updates.estimates)
    for name in ("", "fresh_"):
        same[f"{name}gain"] = replace(same[f"{name}gain"], value=0.0, low=-0.3, high=0.3)
    (finding,) = judge([replace(from_updates, estimates=same)], {}, rules(), COMMAND).findings
    assert (finding.state, finding.severity) == ("not measured", Severity.info)


def test_what_a_subject_lacks_is_said() -> None:
    here = given()
    answers = replace(here, model=Oracle(here.model, "scores"))  # pyright: ignore
    for method in (gradient_inversion, model_inversion):
        trial = evaluate(method, answers)
        assert trial.status == "skipped"
        assert "needs the model itself" in trial.reason
    trial = evaluate(model_inversion, replace(here, train=None))
    assert "give the subject its `train`" in trial.reason
    with pytest.raises(ValueError, match="expected 32 rows or more for updates of 1, got 20"):
        evaluate(gradient_inversion, replace(here, train=noise(20)))
