"""Reconstructions and guesses measured end to end on small encoders, and what the judge makes of planted trials."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace
from functools import partial
from typing import cast

import pytest
import torch
from torch import Tensor, nn

from buckler.data import Rows
from buckler.encoders import _making
from buckler.encoders._attributes import _told as attributes_told  # pyright: ignore[reportPrivateUsage]
from buckler.encoders._attributes import most
from buckler.encoders._guessed import _told as making_told  # pyright: ignore[reportPrivateUsage]
from buckler.encoders._guessed import network
from buckler.encoders._judged_guesses import of_guesses
from buckler.encoders._judged_reconstruction import of_reconstruction
from buckler.encoders.attribute import attribute
from buckler.encoders.decoder import decoder
from buckler.encoders.evaluate import evaluate
from buckler.encoders.feature_inversion import feature_inversion
from buckler.encoders.pretraining_recipe import pretraining_recipe
from buckler.encoders.share_of_class import share_of_class
from buckler.encoders.simclr import simclr
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
    trial = evaluate(share_of_class, subject, models=4, pretraining=partial(simclr, epochs=1))
    again(trial)
    assert trial.estimates["right"].n == trial.estimates["shuffled"].n == 4
    verdict, rows = of_guesses([trial], rules(), "buckler run {method}")
    assert verdict.findings[0].id == "encoders/attributes/share"
    assert verdict.findings[0].state != "found", "four encoders decide nothing"
    assert rows == ()


def test_a_recipe_is_told_of_encoders_of_other_rows(subject: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_making, "STEPS", {"short": 5, "long": 10})
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


def test_rows_that_stand_by_class_are_asked_about_like_others(subject: Subject, encoder: nn.Module) -> None:
    x, y = cast(Rows, subject.test)
    order = y.argsort(stable=True)
    trial = SMALL(partial(attribute, epochs=4), replace(subject, encoder=encoder, test=(x[order], y[order])), rows=300)
    assert trial.status == "ok", "features of another row are not of the same class"
    assert trial.estimates["correct"].value > 0.8, "what is learnt from and what is asked about have the same classes"


def test_an_encoder_that_is_training_is_asked_as_it_evaluates_and_left_as_it_was(
    subject: Subject, encoder: nn.Module
) -> None:
    own = deepcopy(encoder).train()
    before = {name: tensor.clone() for name, tensor in own.state_dict().items()}
    trial = SMALL(partial(attribute, epochs=1), replace(subject, encoder=own))
    assert all(tensor.equal(before[name]) for name, tensor in own.state_dict().items())
    assert all(part.training for part in own.modules())
    evaluated = SMALL(partial(attribute, epochs=1), replace(subject, encoder=encoder))
    assert trial.estimates == evaluated.estimates


def test_how_an_encoder_is_built_is_known_only_where_nothing_goes_around_its_parts(
    subject: Subject, encoder: nn.Module
) -> None:
    class Around(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Conv2d(1, 1, 3, padding=1)

        def forward(self, x: Tensor) -> Tensor:
            return (x + self.inner(x)).flatten(1)

    for own, known in ((encoder, "residual"), (nn.Sequential(nn.Flatten(), nn.Linear(64, 8)), "dense"), (Around(), "")):
        assert network(own) == known


def test_what_is_there_without_pre_training_is_called_so_only_where_it_is(told: Trial) -> None:
    for untaught in (1, 0):
        planted = {**told.evidence, "gain_right_turned": torch.ones(60, dtype=torch.int8)}
        planted["gain_untrained_turned"] = torch.full((60,), untaught, dtype=torch.int8)
        found = replace(told, evidence=planted, estimates={k: recompute(e, planted) for k, e in told.estimates.items()})
        (finding,) = of_guesses([found], rules(), "run {method}")[0].findings
        assert ("there without pre-training" in finding.claim) == bool(untaught)


def test_what_cannot_be_measured_is_said(subject: Subject) -> None:
    for method in (share_of_class, pretraining_recipe):
        trial = evaluate(method, replace(subject, train=None), models=12)
        verdict, rows = of_guesses([trial], rules(), "buckler run {method}")
        assert trial.status == "skipped"
        assert "train" in verdict.not_measured[0].why
        assert not rows
    with pytest.raises(ValueError, match="12 encoders or more"):
        evaluate(pretraining_recipe, subject, models=4)
    with pytest.raises(ValueError, match="4 encoders or more"):
        evaluate(share_of_class, subject, models=3)
    with pytest.raises(ValueError, match="no models here"):
        evaluate(decoder, subject, models=4)
