"""JUnit XML, for the panels of continuous integration.

One test case for each finding: a failure if it was found at or above the gate, an error if its check ended in one,
skipped if it was not measured, else passed. Contradictions are test cases with an error, and what was left out of the
plan is skipped. The verdict stands in the suite's properties; a finding that is skipped is one that keeps it from
passing.
"""

from __future__ import annotations

import re
from xml.etree import ElementTree as XML

from buckler.findings import Finding, Report, verdict
from buckler.report._view import in_words, ordered

_ILLEGAL = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def text(report: Report) -> str:
    ruling = verdict(report)
    suite = XML.Element("testsuite", name=_legal(f"buckler: {report.name}"))
    properties = XML.SubElement(suite, "properties")
    for name, value in (
        ("outcome", ruling.outcome),
        ("exit_code", str(ruling.exit_code)),
        ("verdict", ruling.says),
        ("gate", report.gate.value),
        ("schema", report.schema),
    ):
        XML.SubElement(properties, "property", name=name, value=_legal(value))
    for finding in ordered(report.findings):
        _case(suite, finding, report)
    for index, contradiction in enumerate(report.contradictions):
        case = XML.SubElement(suite, "testcase", classname="contradictions", name=f"contradiction {index + 1}")
        XML.SubElement(case, "error", message=_legal(contradiction), type="contradiction")
    for entry in report.not_measured:
        case = XML.SubElement(suite, "testcase", classname="not measured", name=_legal(entry.what))
        XML.SubElement(case, "skipped", message=_legal(entry.why))
    counts = {
        "tests": len(suite.findall("testcase")),
        "failures": len(suite.findall("testcase/failure")),
        "errors": len(suite.findall("testcase/error")),
        "skipped": len(suite.findall("testcase/skipped")),
    }
    for key, count in counts.items():
        suite.set(key, str(count))
    suite.set("time", f"{report.seconds:.3f}")
    suite.set("timestamp", _legal(report.created))
    root = XML.Element("testsuites", {key: str(count) for key, count in counts.items()})
    root.append(suite)
    XML.indent(root)
    return XML.tostring(root, "unicode", xml_declaration=True) + "\n"


def _case(suite: XML.Element, finding: Finding, report: Report) -> None:
    case = XML.SubElement(
        suite,
        "testcase",
        classname=finding.id,
        name=_legal(finding.title),
        time=f"{finding.cost.seconds:.3f}",
    )
    said = [finding.claim, *(f"{name}: {in_words(e)}" for name, e in finding.estimates.items())]
    body = _legal("\n".join([*said, *([f"Reproduce: {finding.reproduce}"] if finding.reproduce else [])]))
    if finding.state == "found" and finding.severity >= report.gate:
        XML.SubElement(case, "failure", message=_legal(finding.claim), type=finding.severity.value).text = body
    elif finding.state == "error":
        XML.SubElement(case, "error", message=_legal(finding.claim), type="error").text = body
    elif finding.state == "not measured":
        XML.SubElement(case, "skipped", message=_legal(finding.claim))
    else:
        note = f"{finding.severity}, below the gate: " if finding.state == "found" else ""
        XML.SubElement(case, "system-out").text = note + body


def _legal(text: str) -> str:
    """XML cannot hold most control characters, not even escaped."""
    return _ILLEGAL.sub("\ufffd", text)
