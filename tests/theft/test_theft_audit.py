"""An audit of what copies cost: the plan, a small one from end to end, and surrogates of another area."""

from __future__ import annotations

from pathlib import Path

import pytest

from buckler import plan as plans
from buckler.audit import audit
from buckler.findings import Severity
from buckler.trial import load

NETS = """
import torch
from torch import nn
from buckler.nets import LinearModel

def build():
    return nn.Linear(6, 3)

def load():
    weight = 4 * torch.randn(3, 6, generator=torch.Generator().manual_seed(0))
    return LinearModel(weight, -weight.sum(1) / 2).eval()

def test():
    x = torch.rand(300, 6, generator=torch.Generator().manual_seed(1))
    return x, load()(x).argmax(1)
"""
PLAN = """
title = "small"
rows = 150
[limits]
linf = 0.1
[[trial]]
method = "theft/equation_solving"
queries = [20, 60]
[[trial]]
method = "theft/copycat"
queries = [60]
epochs = 5
[[trial]]
method = "theft/rounding"
attack = "theft/equation_solving"
queries = [60]
[[trial]]
method = "theft/copycat"
pool = "train"
[[trial]]
method = "evasion/pgd"
ball = "linf"
rows = 30
through = "theft/jbda"
"""


def test_an_audit_says_what_a_copy_costs(tmp_path: Path) -> None:
    (tmp_path / "nets_of_the_theft_test.py").write_text(NETS)
    names = {"model": "load", "test": "test", "net": "build"}
    lines = [f'{key} = "nets_of_the_theft_test:{name}"' for key, name in names.items()]
    (tmp_path / "buckler.toml").write_text("\n".join(['[subject]\nname = "small"', *lines]) + "\n")
    (tmp_path / "plan.toml").write_text(PLAN)
    report = audit({"file": str(tmp_path / "buckler.toml")}, str(tmp_path / "plan.toml"), tmp_path / "run")
    found = {f.id: f for f in report.findings}
    assert found["theft/extraction"].severity is Severity.critical
    assert "theft/equation_solving" in found["theft/extraction"].claim
    assert found["theft/guards"].severity is Severity.info
    assert [m.what for m in report.not_measured if m.what.startswith("theft")] == ["theft/copycat"]
    assert (tmp_path / "run" / "stolen.csv").is_file()
    trials = [load(folder) for folder in (tmp_path / "run" / "trials").iterdir()]
    (transfer,) = (t for t in trials if t.method == "evasion/pgd")
    assert transfer.params["through"] == "theft/jbda"
    assert transfer.status in ("ok", "inconclusive")
    assert transfer.cost.queries > 100


def test_the_plans_of_the_package_ask_for_it() -> None:
    jobs = plans.jobs(plans.read("theft"), {})
    paths = {job.path for job in jobs}
    assert {"theft/knockoff", "theft/jbda", "theft/copycat", "theft/prediction_poisoning"} <= paths
    assert all(job.area == "theft" for job in jobs)
    assert {job.aim[2] for job in jobs} == {"a copy of the model", "what is behind the answers"}


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"method": "theft/rounding", "attack": "evasion/pgd"}, "in theft, got evasion/pgd"),
        ({"method": "theft/knockoff", "pool": "everything"}, "for pool, got 'everything'"),
        ({"method": "theft/knockoff", "queries": 3}, "for queries, got 3"),
        ({"method": "theft/knockoff", "ball": "linf:0.1"}, "unknown key 'ball'"),
        ({"method": "theft/knockoff", "queries": [0, 5]}, "at least one query"),
        ({"method": "theft/knockoff", "queries": []}, "at least one query"),
        ({"method": "theft/knockoff", "reveals": "topless"}, "expected reveals as labels"),
        ({"method": "theft/knockoff", "attack": "theft/jbda"}, "no attack here"),
        ({"method": "theft/knockoff", "training_epochs": 3}, "no training epochs here"),
        ({"method": "theft/watermark", "queries": [100]}, "no queries here"),
        ({"method": "theft/watermark", "pool": "test"}, "no pool here"),
    ],
)
def test_a_row_that_makes_no_sense_is_refused(row: dict[str, object], says: str) -> None:
    made = plans.valid({"title": "x", "rows": 9, "limits": {}, "trial": [row]}, "x")
    with pytest.raises(plans.BadPlan, match=says):
        plans.jobs(made, {})
