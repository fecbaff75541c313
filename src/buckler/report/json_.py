"""The record: a report as JSON with a versioned schema (`report.schema.json`), and back.

Everything is kept, figures too; an infinite or undefined number is written as the text `inf` or `nan`, as
`Estimate.record` does. `read` checks what it reads: the nouns validate themselves, and a verdict in the file that its
own findings do not give is an error.
"""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

from buckler.findings import SCHEMA, Cell, Figure, Finding, NotMeasured, Report, Severity, verdict
from buckler.stats import Estimate
from buckler.threat import Threat, tag_name
from buckler.trial import Check, Cost


def record(report: Report) -> dict[str, object]:
    """The report as JSON holds it."""
    ruling = verdict(report)
    plain = {
        "schema": report.schema,
        "name": report.name,
        "created": report.created,
        "verdict": {"outcome": ruling.outcome, "exit_code": ruling.exit_code, "says": ruling.says},
        "subject": report.subject,
        "plan": report.plan,
        "gate": report.gate.value,
        "findings": [_finding(finding) for finding in report.findings],
        "not_measured": [
            {"what": entry.what, "why": entry.why, "cell": _cell(entry.cell)} for entry in report.not_measured
        ],
        "contradictions": report.contradictions,
        "trials": report.trials,
        "severities": report.severities,
        "versions": report.versions,
        "seconds": report.seconds,
    }
    return cast("dict[str, object]", _plain(plain))


def text(report: Report) -> str:
    return json.dumps(record(report), indent=1, allow_nan=False) + "\n"


def load(content: Mapping[str, Any]) -> Report:
    """The report of a record; a `ValueError` says what does not fit."""
    if content.get("schema") != SCHEMA:
        raise ValueError(f"expected a report of schema {SCHEMA}, got {content.get('schema')!r}")
    try:
        report = Report(
            name=content["name"],
            created=content["created"],
            subject=content["subject"],
            plan=content["plan"],
            gate=Severity.parse(content["gate"]),
            findings=tuple(_load_finding(entry) for entry in content["findings"]),
            not_measured=tuple(
                NotMeasured(entry["what"], entry["why"], _load_cell(entry["cell"]) if entry["cell"] else None)
                for entry in content["not_measured"]
            ),
            contradictions=tuple(content["contradictions"]),
            trials=tuple(content["trials"]),
            severities=content["severities"],
            versions=content["versions"],
            seconds=float(content["seconds"]),
        )
        written = content["verdict"]["outcome"]
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"expected a report of schema {SCHEMA}, got one without or with a wrong {error}") from error
    if verdict(report).outcome != written:
        raise ValueError(
            f"the report says {written!r} and its findings give {verdict(report).outcome!r}: it was altered"
        )
    return report


def read(path: Path) -> Report:
    """Read `report.json`; a `ValueError` says in one sentence what is wrong with the file."""
    try:
        content = json.loads(path.read_text("utf8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path}: expected a report.json, got {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path}: expected a report.json, got {type(content).__name__}")
    try:
        return load(cast("dict[str, Any]", content))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _finding(finding: Finding) -> dict[str, object]:
    return {
        "id": finding.id,
        "title": finding.title,
        "state": finding.state,
        "severity": finding.severity.value,
        "because": finding.because,
        "claim": finding.claim,
        "cell": _cell(finding.cell),
        "estimates": {name: estimate.record() for name, estimate in finding.estimates.items()},
        "threat": finding.threat.record() if finding.threat else None,
        "checks": [asdict(check) for check in finding.checks],
        "figures": [_figure(figure) for figure in finding.figures],
        "remedy": finding.remedy,
        "remedy_methods": finding.remedy_methods,
        "remedied": {name: estimate.record() for name, estimate in finding.remedied.items()},
        "tags": [{"tag": tag, "name": tag_name(tag)} for tag in finding.tags],
        "cost": asdict(finding.cost),
        "trials": finding.trials,
        "reproduce": finding.reproduce,
        "tables": finding.tables,
        "grid": [list(row) for row in finding.grid],
    }


def _load_finding(entry: Mapping[str, Any]) -> Finding:
    return Finding(
        id=entry["id"],
        title=entry["title"],
        state=entry["state"],
        severity=Severity.parse(entry["severity"]),
        because=entry["because"],
        claim=entry["claim"],
        cell=_load_cell(entry["cell"]),
        estimates={name: Estimate.load(estimate) for name, estimate in entry["estimates"].items()},
        threat=_load_threat(entry["threat"]) if entry["threat"] else None,
        checks=tuple(_load_check(check) for check in entry["checks"]),
        figures=tuple(_load_figure(figure) for figure in entry["figures"]),
        remedy=entry["remedy"],
        remedy_methods=tuple(entry["remedy_methods"]),
        remedied={name: Estimate.load(estimate) for name, estimate in entry["remedied"].items()},
        tags=tuple(tag["tag"] for tag in entry["tags"]),
        cost=Cost(**entry["cost"]),
        trials=tuple(entry["trials"]),
        reproduce=entry["reproduce"],
        tables=dict(entry["tables"]),
        grid=tuple(tuple(row) for row in entry.get("grid", ())),
    )


def _load_threat(entry: Mapping[str, Any]) -> Threat:
    return Threat(entry["sees"], entry["changes"], entry["within"], entry["wants"], tuple(entry["tags"]))


def _cell(cell: tuple[str, str] | None) -> dict[str, str] | None:
    return {"stage": cell[0], "property": cell[1]} if cell else None


def _load_cell(entry: Mapping[str, Any]) -> Cell:
    return entry["stage"], entry["property"]


def _figure(figure: Figure) -> dict[str, object]:
    picture = {"svg": figure.svg} if figure.svg else {"png": base64.b64encode(figure.png).decode()}
    return {"name": figure.name, "caption": figure.caption, "alt": figure.alt, **picture}


def _load_figure(entry: Mapping[str, Any]) -> Figure:
    png = base64.b64decode(entry.get("png", ""), validate=True)
    return Figure(entry["name"], entry["caption"], entry["alt"], entry.get("svg", ""), png)


def _load_check(entry: Mapping[str, Any]) -> Check:
    value = entry["value"]
    return Check(entry["name"], entry["passed"], entry["says"], None if value is None else float(value))


def _plain(value: object) -> object:
    """What JSON can hold: numbers that are not finite as text, tuples as lists, keys as text."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in cast("Mapping[object, object]", value).items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in cast("list[object]", value)]
    return value
