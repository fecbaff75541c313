"""The evaluator and the judge of guesses: beside imputation, a control, and chance."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from membership_worlds import SIDE, subject, untaught
from torch import Tensor, nn

from buckler.data import Rows
from buckler.findings import Severity, rules
from buckler.kinds import Guessed
from buckler.privacy.attribute_inference import attribute_inference
from buckler.privacy.evaluate import evaluate
from buckler.privacy.judge import judge
from buckler.privacy.property_inference import property_inference
from buckler.stats import agree, difference, recompute, share
from buckler.subject import Subject
from buckler.target import Oracle, ScoreOracle
from buckler.train import fit, started
from buckler.trial import Trial, load, save

COMMAND = "buckler run {method} --demo digits --seed 0"
HIDDEN = tuple(range(18, 36))


def striped(many: int, seed: int) -> Rows:
    """Noise above, and below all black or all white, by chance; labels by chance as well."""
    draw = torch.Generator().manual_seed(seed)
    x, y = torch.rand(many, 1, SIDE, SIDE, generator=draw), torch.randint(0, 4, (many,), generator=draw)
    x[:, :, 3:] = torch.randint(0, 2, (many,), generator=draw).float()[:, None, None, None]
    return x, y


def wide() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(SIDE * SIDE, 256), nn.ReLU(), nn.Linear(256, 4))


def by_heart(data: Rows) -> nn.Module:
    return fit(started(wide, 0), data, epochs=40, batch=32, rate=0.01, decay=0.0, optimizer="adam")


def stripes() -> Subject:
    train = striped(200, 0)
    return subject(by_heart, train=train, test=striped(300, 1), model=by_heart(train))


attack = partial(attribute_inference, columns=HIDDEN, levels=2)


@pytest.fixture(scope="module")
def columns() -> Trial:
    return evaluate(attack, stripes(), rows=200)


def test_a_model_that_learnt_by_heart_tells_what_cannot_be_imputed(columns: Trial) -> None:
    e = columns.estimates
    assert columns.status == "ok"
    assert e["imputed"].low < 0.5 < e["imputed"].high
    assert e["gain"].low > 0.05
    assert e["leak"].low > 0.05
    assert e["outside_gain"].low <= 0 <= e["outside_gain"].high
    assert columns.cost.queries == 2 * len(columns.evidence["truth"])


def test_a_model_that_knows_no_row_tells_no_more_than_imputation() -> None:
    trial = evaluate(attack, replace(stripes(), model=untaught(striped(9, 3)), recipe=untaught), rows=200)
    assert trial.estimates["gain"].low <= 0 <= trial.estimates["gain"].high
    assert trial.estimates["leak"].low <= 0
    (finding,) = judge([trial], {}, rules(), COMMAND).findings
    assert finding.state != "found"


def test_a_method_does_not_see_what_is_hidden() -> None:
    def reading(
        oracle: ScoreOracle, x: Tensor, y: Tensor, *, columns: tuple[int, ...] = HIDDEN, levels: int = 2
    ) -> Guessed:
        assert float(x.flatten(1)[:, list(columns)].abs().max()) == 0
        return {"attribute": torch.eye(2)[x.flatten(1)[:, columns[0]].long()]}

    trial = evaluate(reading, stripes(), rows=100)
    assert trial.estimates["right"].low < 0.5 < trial.estimates["right"].high


def shares_of(recipe: object, shares: tuple[float, float], models: int = 12) -> Trial:
    """Of a training that only counts: it answers everything with how often each class was seen."""
    draw = torch.Generator().manual_seed(0)
    x, y = torch.rand(400, 4, generator=draw), torch.randint(0, 3, (400,), generator=draw)
    given = Subject("counts", nn.Linear(4, 3), (x[:30], y[:30]), (x, y), recipe)  # pyright: ignore
    return evaluate(partial(property_inference, shares=shares, strength=1.0), given, models=models)


def counting(data: Rows) -> nn.Module:
    model = nn.Linear(4, 3)
    with torch.no_grad():
        model.weight.mul_(0.01)
        model.bias.copy_((torch.bincount(data[1], minlength=3) / len(data[1])).clamp_min(1e-3).log())
    return model


def ignoring(data: Rows) -> nn.Module:
    return nn.Linear(4, 3)


def test_a_share_that_shows_in_every_answer_is_told() -> None:
    trial = shares_of(counting, (0.1, 0.3))
    assert trial.estimates["right"].value == 1
    (finding,) = judge([trial], {}, rules(), COMMAND).findings
    assert (finding.id, finding.state) == ("privacy/property", "found")
    assert "whether class 0 was 10% or 30% of the rows" in finding.claim


@pytest.mark.parametrize(("recipe", "shares"), [(counting, (0.2, 0.2)), (ignoring, (0.1, 0.3))])
def test_the_same_share_or_a_training_that_ignores_it_is_told_by_chance(
    recipe: object, shares: tuple[float, float]
) -> None:
    trial = shares_of(recipe, shares, 40)
    estimate = trial.estimates["right"]
    assert estimate.low <= 0.5 <= estimate.high
    assert estimate.n == 40


def test_every_number_is_recomputed(columns: Trial, tmp_path: Path) -> None:
    for trial in (columns, shares_of(counting, (0.1, 0.3), 4)):
        save(trial, tmp_path / trial.method.replace("/", "-"))
        loaded = load(tmp_path / trial.method.replace("/", "-"))
        for estimate in loaded.estimates.values():
            assert agree(estimate, recompute(estimate, loaded.evidence))


def test_the_judge_says_what_imputation_says(columns: Trial) -> None:
    (finding,) = judge([columns], {}, rules(), COMMAND).findings
    assert (finding.id, finding.state) == ("privacy/attributes", "found")
    assert "by the other columns and the label alone" in finding.claim
    assert next(iter(finding.estimates)) == "hidden values told beyond a model that learnt from other rows"
    assert [figure.name for figure in finding.figures] == ["attributes"]


def test_what_every_model_tells_is_no_leak(columns: Trial) -> None:
    """A model that learnt from other rows tells as much: that is how rows are, whatever imputation makes of them."""
    right = columns.evidence["right"]
    gain = columns.evidence["gain"]
    alike = {"control_right": right, "control_gain": gain, "leak": torch.zeros_like(gain)}
    estimates = {
        **columns.estimates,
        "control_right": share(right, "control_right"),
        **{name: difference(alike[name], name) for name in ("control_gain", "leak")},
    }
    trial = replace(columns, evidence={**columns.evidence, **alike}, estimates=estimates)
    (finding,) = judge([trial], {}, rules(), COMMAND).findings
    assert (finding.state, finding.severity, finding.remedy) == ("clear", Severity.info, "")
    assert "it is no leak of these" in finding.claim
    del estimates["leak"]
    (finding,) = judge([replace(trial, estimates=estimates)], {}, rules(), COMMAND).findings
    assert finding.state == "found"  # without a control there is imputation alone


def test_what_a_subject_lacks_is_said() -> None:
    here = stripes()
    assert "give the subject its `train`" in evaluate(attack, replace(here, train=None)).reason
    labels = replace(here, model=Oracle(here.model, "labels"))  # pyright: ignore
    assert "reveals labels only" in evaluate(attack, labels).reason
    assert "`recipe` or its `net`" in evaluate(property_inference, replace(here, recipe=None)).reason
