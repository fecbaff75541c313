"""Audit a model of one's own with a plan of one's own: `buckler audit examples/own_model --plan ...` from Python."""

import sys
from pathlib import Path

from buckler.audit import audit
from buckler.findings import verdict
from buckler.subject import load

here = Path(__file__).parent / "own_model"
out = Path(sys.argv[1] if len(sys.argv) > 1 else "runs/own_model")
report = audit(load(here).spec(), str(here / "plan.toml"), out)
print(verdict(report).says)
print(f"open {out / 'report.html'}")
