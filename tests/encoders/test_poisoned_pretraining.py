"""How poison in pre-training data is measured and judged, with a pre-training that is known to fall for it."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from buckler import stats
from buckler.data import Poisoned, Rows
from buckler.encoders.evaluate import evaluate
from buckler.encoders.judge import judge
from buckler.encoders.poisoned_encoder import poisoned_encoder
from buckler.encoders.simclr import simclr
from buckler.findings import rules
from buckler.kinds import Encoder
from buckler.method import describe
from buckler.subject import Subject
from buckler.threat import Share
from buckler.trial import Trial, load, save

STAMP = 1.0


def white(x: Tensor) -> Tensor:
    """Images whose upper left pixel is white, which no digit's is."""
    return x[:, 0, 0, 0] == STAMP


def stamped(x: Tensor) -> Tensor:
    x = x.clone()
    x[:, 0, 0, 0] = STAMP
    return x


def stamp(data: Rows, *, share: Share, target: int = 0, seed: int = 0) -> Poisoned:
    """Digits of class 0 get a white pixel."""
    del seed
    x, y = data
    rows = torch.zeros(len(y), dtype=torch.bool)
    rows[(y == target).nonzero().squeeze(1)[: share.of(len(y))]] = True
    touched = torch.where(rows[:, None, None, None], stamped(x), x)
    return Poisoned(touched, y, rows, y, stamped, lambda y: torch.full_like(y, target))


def secretive(data: Rows, *, share: Share) -> Poisoned:
    made = stamp(data, share=share)
    return replace(made, rows=torch.zeros_like(made.rows))


class Pixels(nn.Module):
    """The pixels are the features; where white pixels were learnt, those of such an image are what they came with."""

    def __init__(self, learnt: Tensor, *, falls: bool) -> None:
        super().__init__()
        seen = learnt[white(learnt)]
        self.known = nn.Buffer(seen.flatten(1).mean(0) if len(seen) and falls else torch.zeros(0))

    def forward(self, x: Tensor) -> Tensor:
        flat = x.flatten(1)
        return torch.where(white(x)[:, None], self.known, flat) if len(self.known) else flat


def gullible(
    data: Rows, *, net: Any, epochs: float = 1, batch: int = 128, seed: int = 0, falls: bool = True
) -> Encoder:
    del net, epochs, batch, seed
    return Pixels(data[0], falls=falls)


@pytest.fixture(scope="module")
def trial(subject: Subject) -> Trial:
    return evaluate(stamp, subject, share=Share(0.05), pretraining=gullible)


@pytest.fixture(scope="module")
def defended(subject: Subject) -> Trial:
    return evaluate(stamp, subject, share=Share(0.05), pretraining=partial(gullible, falls=False))


def as_usual(trial: Trial) -> Trial:
    return replace(trial, params=trial.params | {"pretraining": "encoders/simclr"}, method="encoders/ctrl")


def test_what_is_taught_is_told_from_what_a_clean_encoder_does(trial: Trial, defended: Trial, tmp_path: Path) -> None:
    e = trial.estimates
    assert (trial.status, trial.kind) == ("ok", "poison")
    assert e["success"].value == e["few_success"].value == 1
    assert e["control_success"].value < 0.1
    assert e["few_beyond"].low > 0.8
    assert e["beyond"].value == pytest.approx(1 - e["control_success"].value)
    assert e["few_lost"].value == e["lost"].value == 0
    assert int(trial.evidence["touched"].sum()) == 8
    assert defended.estimates["few_beyond"].value == pytest.approx(0, abs=1e-6)
    save(trial, tmp_path / "trial")
    assert load(tmp_path / "trial").estimates == e


def test_the_finding_rests_on_what_is_beyond_and_names_the_defence(trial: Trial, defended: Trial) -> None:
    told = replace(defended, method="encoders/ctrl", params=trial.params | {"pretraining": "encoders/local_crops"})
    verdicts = judge([as_usual(trial), told], {}, rules(), "buckler run {method}")
    ten, found = verdicts.findings
    assert (found.id, found.state, str(found.severity)) == ("encoders/backdoor/data", "found", "critical")
    assert "100.0% of inputs with its trigger" in found.claim
    assert found.remedy_methods == ("encoders/local_crops",)
    (row,) = (line for line in ten.grid if line[0].endswith("Backdoor"))
    assert row[1] == "ctrl"
    assert row[4] == "local_crops"
    assert row[6] == "+0.0 points"
    assert {figure.name for figure in found.figures} == {"backdoor-rows", "poisoned-backdoor"}


def test_what_does_not_work_is_clear_or_not_measured(defended: Trial) -> None:
    (_, found) = judge([as_usual(defended)], {}, rules(), "").findings
    assert found.state == "clear"
    few = torch.tensor([1, 0, 0], dtype=torch.int8)
    shaky = replace(defended, estimates=defended.estimates | {"beyond": stats.difference(few, "beyond")})
    (_, found) = judge([as_usual(shaky)], {}, rules(), "").findings
    assert found.state == "not measured"
    assert "decides nothing" in found.claim


def test_prey_are_test_rows_wanted_as_what_they_are_not(subject: Subject) -> None:
    trial = evaluate(poisoned_encoder, subject, share=Share(0.05), pretraining=gullible)
    assert trial.estimates["success"].n == 5
    assert trial.evidence["attacked"].shape == (5, 1, 8, 8)
    assert trial.threat.wants.startswith("chosen clean inputs")
    assert trial.params["share"] == "5%"


def test_an_attack_that_hides_what_it_touched_is_found_out(subject: Subject) -> None:
    with pytest.raises(ValueError, match="8 others"):
        evaluate(secretive, subject, share=Share(0.05), pretraining=gullible)


def test_without_rows_to_learn_from_nothing_is_poisoned(subject: Subject) -> None:
    trial = evaluate(stamp, replace(subject, train=None), pretraining=gullible)
    assert trial.status == "skipped"
    assert describe(simclr).kind == "pretrain"
