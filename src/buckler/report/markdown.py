"""Markdown, for pull requests and wikis: the verdict, the map, the findings, and what was not measured.

Every text of the record is escaped, so that a name cannot become markup, an image or a link.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from buckler.findings import PROPERTIES, STAGES, Finding, Report, verdict
from buckler.report._view import Square, facts, grade, in_words, interval, life_cycle, number, ordered, seconds
from buckler.stats import Estimate
from buckler.threat import tag_name
from buckler.trial import Check

_SPECIAL = re.compile(r"([\\`*_\[\]|~<>&$])")
_START = re.compile(r"^(?:([-=:+#])|(\d+)(\.)(?=\s))")


def text(report: Report) -> str:
    ruling = verdict(report)
    squares = life_cycle(report)
    lines = [
        f"# Security report: {_plain(report.name)}",
        f"**{ruling.outcome.capitalize()}** (exit code {ruling.exit_code}). {_plain(ruling.says)}",
        f"{_plain(report.created)}, {seconds(report.seconds)}, gate: {report.gate}, Buckler "
        f"{_plain(report.versions.get('buckler', 'unknown'))}",
        "## Life-cycle threat map",
        _table(
            ["", *STAGES],
            [[f"**{prop}**", *(_square(squares[stage, prop]) for stage in STAGES)] for prop in PROPERTIES],
        ),
        "## Findings",
        _table(
            ["severity", "finding", "number"],
            [
                [grade(f.state, f.severity), f"{_plain(f.title)} ({_code(f.id)})", _headline(f)]
                for f in ordered(report.findings)
            ],
        )
        if report.findings
        else "None.",
    ]
    for finding in ordered(report.findings):
        lines += _finding(finding)
    missing = [f"- {_plain(entry.what)}: {_plain(entry.why)}" for entry in report.not_measured]
    missing += [f"- {_plain(f.title)}: {_plain(f.claim)}" for f in report.findings if f.state == "not measured"]
    lines += ["## Not measured", "\n".join(missing) or "Nothing was left out."]
    if report.contradictions:
        lines += ["## Contradictions", "\n".join(f"- {_plain(entry)}" for entry in report.contradictions)]
    lines += ["## Subject and versions", _facts({**report.subject, **report.versions}.items())]
    return "\n\n".join(lines) + "\n"


def _finding(finding: Finding) -> list[str]:
    parts = [
        f"### {_plain(finding.title)}",
        f"**{grade(finding.state, finding.severity)}**, {finding.cell[0]}, {finding.cell[1]} ({_code(finding.id)})",
        _plain(finding.claim),
    ]
    if finding.because:
        parts.append(_plain(finding.because))
    if finding.estimates:
        parts.append(_estimates(finding.estimates))
    if finding.grid:
        head, *lines = [[_plain(text) for text in row] for row in finding.grid]
        parts.append(_table(head, lines))
    if finding.threat:
        threat = finding.threat
        rows = [("sees", threat.sees), ("changes", threat.changes), ("within", threat.within), ("wants", threat.wants)]
        parts.append("The adversary\n\n" + _facts(rows))
    if finding.figures:
        parts.append("\n".join(f"- Figure: {_plain(f.caption)} {_plain(f.alt)}" for f in finding.figures))
    if finding.checks:
        parts.append("\n".join(_check(check) for check in finding.checks))
    if finding.remedy:
        methods = ", ".join(_code(method) for method in finding.remedy_methods)
        parts.append(f"**Remedy.** {_plain(finding.remedy)}{f' Methods: {methods}.' if methods else ''}")
    if finding.remedied:
        parts.append("Measured with the remedy\n\n" + _estimates(finding.remedied))
    if facts(finding):
        parts.append("Cost: " + ", ".join(f"{name} {value}" for name, value in facts(finding)))
    if finding.tags:
        parts.append("Tags: " + ", ".join(f"{_code(tag)} {_plain(tag_name(tag))}" for tag in finding.tags))
    if finding.tables:
        parts.append("Beside this report: " + ", ".join(_code(name) for name in finding.tables))
    if finding.reproduce:
        parts.append(_fence(finding.reproduce))
    return parts


def _check(check: Check) -> str:
    held = "**does not hold**" if not check.passed else "could not tell" if check.value is None else "holds"
    return f"- {held}: {_plain(check.name.rstrip('.'))}: {_plain(check.says)}"


def _square(square: Square) -> str:
    word = grade(square.state, square.severity)
    if square.shown is None or square.shown.headline is None:
        return word
    _, estimate = square.shown.headline
    return f"{word}: {number(estimate)} ({interval(estimate)})" if estimate.n else word


def _headline(finding: Finding) -> str:
    return f"{_plain(finding.headline[0])} {in_words(finding.headline[1])}" if finding.headline else ""


def _estimates(estimates: Mapping[str, Estimate]) -> str:
    return _table(["estimate", "value"], [[_plain(name), in_words(e)] for name, e in estimates.items()])


def _facts(rows: Iterable[tuple[str, str]]) -> str:
    return "\n".join(f"- {_plain(name)}: {_plain(value)}" for name, value in rows)


def _table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _plain(text: object) -> str:
    """`text` on one line, with every character that Markdown or HTML could act on escaped."""
    line = " ".join(str(text).split())
    escaped = _START.sub(lambda found: f"{found[2] or ''}\\{found[1] or found[3]}", _SPECIAL.sub(r"\\\1", line))
    return escaped.replace("\\<", "&lt;").replace("\\>", "&gt;").replace("\\&", "&amp;")


def _code(text: str) -> str:
    """An inline code span; the ids, tags and paths shown so hold neither backticks nor bars."""
    return f"`{re.sub(r'[`|<>]', ' ', ' '.join(text.split()))}`"


def _fence(text: str) -> str:
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}sh\n{text}\n{fence}"
