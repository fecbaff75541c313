"""Audits of what a model gives away: plans, shared shadows, findings, and a run that was broken off."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from buckler import plan as plans
from buckler.audit import audit
from buckler.findings import Severity

NETS = """
from pathlib import Path
import torch
from torch import nn
from buckler.train import fit, started

def build():
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 4))

def rows(seed):
    draw = torch.Generator().manual_seed(seed)
    return torch.rand(160, 1, 4, 4, generator=draw), torch.randint(0, 4, (160,), generator=draw)

def train():
    return rows(0)

def test():
    return rows(1)

def recipe(data):
    with (Path(__file__).parent / "trained").open("a") as log:
        log.write("1")
    return fit(started(build, 0), data, epochs=30, batch=32, rate=0.02, decay=0.0, optimizer="adam")

def load():
    return fit(started(build, 0), rows(0), epochs=30, batch=32, rate=0.02, decay=0.0, optimizer="adam")
"""
PLAN = """
title = "small"
rows = 400
[limits]
linf = 0.1
[[trial]]
method = "privacy/loss_threshold"
[[trial]]
method = "privacy/lira"
models = 4
[[trial]]
method = "privacy/rmia"
models = 4
"""


@pytest.fixture
def spec(tmp_path: Path) -> dict[str, str]:
    folder = tmp_path / "subject"
    folder.mkdir()
    (folder / "nets_of_the_privacy_test.py").write_text(NETS)
    (folder / "plan.toml").write_text(PLAN)
    names = {"model": "load", "test": "test", "train": "train", "recipe": "recipe"}
    lines = [f'{key} = "nets_of_the_privacy_test:{name}"' for key, name in names.items()]
    (folder / "buckler.toml").write_text("\n".join(['[subject]\nname = "small"', *lines]) + "\n")
    return {"file": str(folder / "buckler.toml")}


def test_an_audit_finds_what_was_learnt_by_heart_and_trains_its_shadows_once(
    spec: dict[str, str], tmp_path: Path
) -> None:
    folder, out = Path(spec["file"]).parent, tmp_path / "run"
    report = audit(spec, str(folder / "plan.toml"), out)
    assert {f.id: f.state for f in report.findings} == {"privacy/training": "found", "privacy/model": "found"}
    assert all(finding.severity >= Severity.medium for finding in report.findings)
    assert (out / "exposed-model.csv").is_file()
    trained = len((folder / "trained").read_text())
    # a control for the threshold; a target and a control for each of two methods; four shadows for both together
    assert trained == 1 + 2 * 2 + 4
    assert len(list((out / "kept").glob("*/*.npy"))) == 4
    for trial in (out / "trials").iterdir():
        shutil.rmtree(trial)
    again = audit(spec, str(folder / "plan.toml"), out)
    assert len((folder / "trained").read_text()) == trained + 1 + 2 * 2  # the shadows were there
    assert [f.estimates for f in again.findings] == [f.estimates for f in report.findings]


def test_the_plans_of_the_package_ask_for_it() -> None:
    quick = [job.path for job in plans.jobs(plans.read("quick"), {})]
    assert "privacy/loss_threshold" in quick
    mine = plans.jobs(plans.read("privacy"), {})
    assert {"privacy/lira", "privacy/rmia", "privacy/loss_threshold"} <= {job.path for job in mine}
    assert all(job.area == "privacy" for job in mine)
