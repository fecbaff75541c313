"""SARIF 2.1.0, for code-scanning panels.

Every finding of the audit is a rule; only what was found is a result, because panels show every result as an alert.
What was not measured and what ended in an error are notifications of the invocation, which also holds the verdict and
the exit code. GitHub asks for a physical location: it is the subject's file, or `buckler.toml`.
"""

from __future__ import annotations

import hashlib
import json
from urllib.parse import quote

from buckler.findings import Finding, Report, Severity, verdict
from buckler.report._view import in_words, ordered
from buckler.threat import tag_name

_LEVELS = {
    Severity.critical: "error",
    Severity.high: "error",
    Severity.medium: "warning",
    Severity.low: "note",
    Severity.info: "note",
}
# what GitHub sorts security alerts by: its own bands for critical, high, medium and low, not a measurement
_BANDS = {
    Severity.critical: "9.5",
    Severity.high: "8.0",
    Severity.medium: "5.5",
    Severity.low: "2.0",
    Severity.info: "0.0",
}


def text(report: Report) -> str:
    ruling = verdict(report)
    findings = ordered(report.findings)
    places = {finding.id: index for index, finding in enumerate(findings)}
    run = {
        "tool": {
            "driver": {
                "name": "Buckler",
                "version": report.versions.get("buckler", "unknown"),
                "rules": [_rule(finding) for finding in findings],
            }
        },
        "invocations": [
            {
                "executionSuccessful": ruling.outcome in ("pass", "fail"),
                "exitCode": ruling.exit_code,
                "exitCodeDescription": f"{ruling.outcome}: {ruling.says}",
                "toolExecutionNotifications": _notifications(report, findings),
            }
        ],
        "results": [_result(report, f, places[f.id]) for f in findings if f.state == "found"],
        "properties": {"outcome": ruling.outcome, "gate": report.gate.value, "schema": report.schema},
    }
    log = {"$schema": "https://json.schemastore.org/sarif-2.1.0.json", "version": "2.1.0", "runs": [run]}
    return json.dumps(log, indent=1, allow_nan=False) + "\n"


def _rule(finding: Finding) -> dict[str, object]:
    rule: dict[str, object] = {
        "id": finding.id,
        "name": finding.title,
        "shortDescription": {"text": finding.title},
        "fullDescription": {"text": finding.claim},
        "defaultConfiguration": {"level": _LEVELS[finding.severity]},
        "properties": {
            "tags": ["security", *finding.tags],
            "security-severity": _BANDS[finding.severity],
            "state": finding.state,
            "stage": finding.cell[0],
            "property": finding.cell[1],
        },
    }
    if finding.remedy:
        rule["help"] = {"text": finding.remedy}
    return rule


def _result(report: Report, finding: Finding, index: int) -> dict[str, object]:
    said = "; ".join(f"{name}: {in_words(estimate)}" for name, estimate in finding.estimates.items())
    place = _place(report)
    identity = hashlib.sha256(f"{finding.id}|{place}".encode(errors="replace")).hexdigest()
    return {
        "ruleId": finding.id,
        "ruleIndex": index,
        "kind": "fail",
        "level": _LEVELS[finding.severity],
        "message": {"text": f"{finding.claim} {said}".strip()},
        "locations": [{"physicalLocation": {"artifactLocation": {"uri": place}, "region": {"startLine": 1}}}],
        "partialFingerprints": {"bucklerFinding/v1": identity},
        "properties": {
            "tags": list(finding.tags),
            "tagNames": [tag_name(tag) for tag in finding.tags],
            "severity": finding.severity.value,
            "estimates": {name: estimate.record() for name, estimate in finding.estimates.items()},
            "trials": list(finding.trials),
        },
    }


def _place(report: Report) -> str:
    """The subject's file as a relative URI reference."""
    return quote(report.subject.get("file", "buckler.toml").replace("\\", "/"), safe="/", errors="replace")


def _notifications(report: Report, findings: list[Finding]) -> list[dict[str, object]]:
    notes = [("error", f"The results contradict each other: {text}", "") for text in report.contradictions]
    notes += [("error", f.claim, f.id) for f in findings if f.state == "error"]
    notes += [("note", f"Not measured: {f.claim}", f.id) for f in findings if f.state == "not measured"]
    notes += [("note", f"Not measured: {entry.what}: {entry.why}", "") for entry in report.not_measured]
    return [
        {"level": level, "message": {"text": text}, **({"associatedRule": {"id": rule}} if rule else {})}
        for level, text, rule in notes
    ]
