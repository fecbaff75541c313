"""Run folders that a person, a disk or another program has changed: one sentence, or set aside and run again."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from buckler.audit import rejudge
from buckler.runs import BadRun, begin, finished, read
from buckler.threat import Threat
from buckler.trial import Trial, load, save

PRINT = "0123456789abcdef"
REQUEST: dict[str, Any] = {
    "spec": {"demo": "digits"},
    "plan": "mine",
    "rows": 5,
    "seed": 0,
    "device": "cpu",
    "subject": {"name": "mine", "model": "m", "data": "d"},
    "limits": {"linf": 0.1},
    "gate": "high",
    "severity": {},
    "content": {
        "name": "mine",
        "title": "t",
        "rows": 5,
        "limits": {"linf": 0.1},
        "trial": [{"method": "evasion/fgsm", "ball": "linf"}],
    },
    "trials": [PRINT],
}


def _edits(value: object) -> Iterator[object]:
    """`value` with every part of it, at any depth, taken out or replaced by something of another kind."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield {name: other for name, other in value.items() if name != key}
            yield from ({**value, key: edited} for edited in _edits(item))
    elif isinstance(value, list):
        yield []
        yield [*value, *value]
        for place, item in enumerate(value):
            yield from ([*value[:place], edited, *value[place + 1 :]] for edited in _edits(item))
    yield from (None, 7, -1.5, True, "", "else", [], {}, [[]], {"": {}})


def test_an_edited_run_is_one_sentence_or_a_report(tmp_path: Path) -> None:
    """Never an error that is not a sentence; and the run as it was written makes a report."""
    begin(tmp_path, REQUEST)
    written = (tmp_path / "run.json").read_text()
    assert [item.what for item in rejudge(tmp_path).not_measured] == ["evasion/fgsm at linf:0.1"]
    refused = 0
    for edited in _edits(json.loads(written)):
        (tmp_path / "run.json").write_text(json.dumps(edited))
        try:
            rejudge(tmp_path)
        except ValueError:
            refused += 1
    assert refused > 100


@pytest.mark.parametrize(
    ("edit", "says"),
    [
        ({"trials": ["../../elsewhere"]}, r"trials\.0"),
        ({"trials": [PRINT.upper()]}, r"trials\.0"),
        ({"trials": [PRINT, PRINT]}, "sound trials"),
        ({"subject": {"name": "mine", "model": "m"}}, r"subject\.data"),
        ({"limits": {"linf": "far"}}, r"limits\.linf"),
        ({"schema": "buckler/run/0"}, "sound schema"),
        ({"plan": None}, "sound plan"),
    ],
)
def test_what_is_wrong_with_a_run_is_named(tmp_path: Path, edit: dict[str, object], says: str) -> None:
    begin(tmp_path, REQUEST)
    (tmp_path / "run.json").write_text(json.dumps({**read(tmp_path), **edit}))
    with pytest.raises(BadRun, match=f"run.json: expected schema buckler/run/1, got one without a .*{says}"):
        read(tmp_path)


@pytest.mark.parametrize(
    "what", ["a file", "a link to nothing", "a link to itself", "an empty folder", "a link to a file"]
)
def test_what_is_no_trial_is_set_aside(tmp_path: Path, what: str) -> None:
    """Or it would be in the way of the trial for ever."""
    begin(tmp_path, REQUEST)
    place = tmp_path / "trials" / PRINT
    (tmp_path / "file").write_text("mine")
    if what == "a file":
        place.write_text("mine")
    elif what == "an empty folder":
        place.mkdir()
    else:
        place.symlink_to({"nothing": "nowhere", "itself": PRINT, "file": tmp_path / "file"}[what.split()[-1]])
    assert finished(tmp_path, [PRINT]) == {}
    (aside,) = (tmp_path / "trials").iterdir()
    assert aside.name.startswith(f"{PRINT}.damaged-")
    trial = Trial(
        method="evasion/fgsm",
        kind="evade",
        params={},
        threat=Threat("weights", "input", "linf:0.1", "any wrong label"),
        subject=REQUEST["subject"],
        seed=0,
        status="ok",
        evidence={"robust": torch.ones(2)},
        fingerprint=PRINT,
    )
    save(trial, place)
    assert load(place).fingerprint == PRINT
    assert list(finished(tmp_path, [PRINT])) == [0]
    assert (tmp_path / "file").read_text() == "mine"
