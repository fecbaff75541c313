"""Reconstructions and guesses measured end to end on small encoders, and what the judge makes of planted trials."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import Tensor

from buckler.encoders._attributes import _told as attributes_told  # pyright: ignore[reportPrivateUsage]
from buckler.encoders._attributes import most
from buckler.encoders._guessed import _told as making_told  # pyright: ignore[reportPrivateUsage]
from buckler.encoders._judged_guesses import of_guesses
from buckler.encoders._judged_reconstruction import of_reconstruction
from buckler.encoders.attribute import attribute
from buckler.encoders.decoder import decoder
from buckler.encoders.evaluate import evaluate
from buckler.encoders.feature_inversion import feature_inversion
from buckler.encoders.pretraining_recipe import pretraining_recipe
from buckler.encoders.share_of_class import share_of_class
from buckler.findings import rules
from buckler.kinds import Guessed, Reconstructed
from buckler.stats import recompute
from buckler.subject import Subject
from buckler.target import FeatureOracle, Oracle
from buckler.trial import Trial

SMALL = partial(evaluate, rows=60, encoder_steps=4, training_epochs=2)


def blindly(oracle: FeatureOracle, features: Tensor, *, images: Tensor) -> Reconstructed:
    """Rebuilds nothing: every picture is the mean of one's own images."""
    return Reconstructed(images.mean(0).expand(len(features), *images.shape[1:]))


def idly(oracle: FeatureOracle, features: Tensor, *, known: tuple[Tensor, Tensor], values: int) -> Guessed:
    """Knows nothing of features: the commonest value."""
    return {"attribute": torch.nn.functional.one_hot(known[1].mode().values, values).float().expand(len(features), -1)}


def again(trial: Trial) -> None:
    assert all(recompute(e, trial.evidence) == e for e in trial.estimates.values())


@pytest.fixture(scope="module")
def rebuilt(subject: Subject) -> Trial:
    return SMALL(partial(decoder, epochs=8), subject)


@pytest.fixture(scope="module")
def told(subject: Subject) -> Trial:
    return SMALL(partial(attribute, epochs=4), subject)


def test_a_reconstruction_is_measured_beside_its_controls(rebuilt: Trial, subject: Subject) -> None:
    again(rebuilt)
    assert rebuilt.status == "ok"
    assert rebuilt.evidence["mean_rebuilt"].sum() <= 2
    assert {"untrained_rebuilt", "noisy_rebuilt", "top_rebuilt", "top_price", "recognised"} <= set(rebuilt.estimates)
    nothing = SMALL(blindly, subject)
    assert nothing.estimates["gain"].high < 0.1
    verdict, rows = of_reconstruction([nothing], rules(), "buckler run {method}")
    assert [finding.state for finding in verdict.findings] != ["found"]
    assert rows[0].problem == "reconstruction"


def test_whoever_holds_the_weights_needs_them(subject: Subject) -> None:
    quick = partial(feature_inversion, steps=3, restarts=1)
    trial = SMALL(quick, subject)
    again(trial)
    assert trial.estimates["rebuilt"].n == 32
    asked = Oracle(torch.nn.Flatten(), "features")
    assert SMALL(quick, replace(subject, encoder=asked)).status == "skipped"


def test_what_features_rebuild_is_found_and_drawn(rebuilt: Trial) -> None:
    shown = {**rebuilt.evidence, "rebuilt": torch.ones(60, dtype=torch.bool), "gain": torch.ones(60, dtype=torch.int8)}
    planted = replace(
        rebuilt,
        evidence=shown,
        estimates={name: recompute(e, shown) for name, e in rebuilt.estimates.items()},
    )
    verdict, (row,) = of_reconstruction([planted], rules(), "buckler run {method}")
    (finding,) = verdict.findings
    assert (finding.id, finding.state) == ("encoders/reconstruction", "found")
    assert "100% of inputs" in finding.claim
    assert finding.figures[0].name == "rebuilt"
    assert row.effect.value == 1


def test_attributes_are_measured_beside_what_is_usual(told: Trial, subject: Subject) -> None:
    again(told)
    assert told.status == "ok"
    assert {f"right_{name}" for name in ("light", "mirrored", "turned", "sibling")} <= set(told.estimates)
    nothing = SMALL(idly, subject)
    assert nothing.estimates[f"gain_right_{most(nothing)}"].low <= 0
    verdict, rows = of_guesses([nothing], rules(), "buckler run {method}")
    assert [(f.id, f.state == "found") for f in verdict.findings] == [("encoders/attributes", False)]
    assert rows[0].problem == "attributes"


def test_controls_that_tell_make_a_trial_undecided(told: Trial) -> None:
    all_, none = torch.ones(40, dtype=torch.bool), torch.zeros(40, dtype=torch.bool)
    planted = {"usual_light": none, "right_light": all_, "shuffled_light": all_}
    found = attributes_told(told, planted, ["light"], ["right"], 0)
    assert found.status == "inconclusive"
    assert "light" in found.reason
    values = torch.arange(40) % 2
    quiet = {"truth_crops": values, "right_crops": all_, "shuffled_crops": values == 0}
    assert making_told(told, quiet, ("crops",), 1).status == "ok"
    loud = {"truth_crops": values, "right_crops": all_, "shuffled_crops": all_}
    assert making_told(told, loud, ("crops",), 1).status == "inconclusive"


def test_a_share_is_told_of_encoders_of_other_rows(subject: Subject) -> None:
    trial = evaluate(share_of_class, subject, models=4)
    again(trial)
    assert trial.estimates["right"].n == trial.estimates["shuffled"].n == 4
    verdict, rows = of_guesses([trial], rules(), "buckler run {method}")
    assert verdict.findings[0].id == "encoders/attributes/share"
    assert verdict.findings[0].state != "found", "four encoders decide nothing"
    assert rows == ()


def test_a_recipe_is_told_of_encoders_of_other_rows(subject: Subject) -> None:
    trial = evaluate(partial(pretraining_recipe, traits=("network", "crops")), subject, models=12, encoder_steps=4)
    again(trial)
    assert trial.estimates["beyond"].n == 6
    assert {"noisy_told", "top_told", "shuffled_told"} <= set(trial.estimates)
    right = {f"{name}_{t}": torch.ones(40, dtype=torch.bool) for t in ("network", "crops") for name in ("right",)}
    planted = {**trial.evidence, **right, "beyond": torch.full((40,), 0.6), "told": torch.ones(40)}
    sure = replace(
        trial, evidence=planted, estimates={name: recompute(e, planted) for name, e in trial.estimates.items()}
    )
    verdict, (row,) = of_guesses([sure], rules(), "buckler run {method}")
    assert (verdict.findings[0].id, verdict.findings[0].state) == ("encoders/making", "found")
    assert "network (100%" in verdict.findings[0].claim
    assert row.problem == "making"


def test_what_cannot_be_measured_is_said(subject: Subject) -> None:
    for method in (share_of_class, pretraining_recipe):
        trial = evaluate(method, replace(subject, train=None), models=12)
        verdict, rows = of_guesses([trial], rules(), "buckler run {method}")
        assert trial.status == "skipped"
        assert "train" in verdict.not_measured[0].why
        assert not rows
    with pytest.raises(ValueError, match="12 encoders or more"):
        evaluate(pretraining_recipe, subject, models=4)
    with pytest.raises(ValueError, match="no models here"):
        evaluate(decoder, subject, models=4)
