"""Findings and the report: what was measured, how grave it is, and the one verdict that every output projects.

A `Report` is the record. HTML, Markdown, JSON, SARIF, JUnit, the console and the exit code are views of it, and all of
them take their outcome from `verdict`. A finding rests on `Estimate`s: a bare number is refused.
"""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from functools import total_ordering
from importlib.resources import files
from typing import Literal, cast, get_args

from buckler.stats import Estimate
from buckler.threat import Threat, tag_name
from buckler.trial import Check, Cost

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # pyright: ignore[reportMissingImports]

SCHEMA = "buckler/report/1"
Stage = Literal["data", "training", "weights", "queries", "embeddings"]
STAGES: tuple[Stage, ...] = get_args(Stage)
Property = Literal["confidentiality", "integrity", "availability"]
PROPERTIES: tuple[Property, ...] = get_args(Property)
State = Literal["found", "clear", "not measured", "error"]
STATES: tuple[State, ...] = get_args(State)
Cell = tuple[Stage, Property]
Outcome = Literal["pass", "fail", "error", "not measured"]
EXIT_CODES: Mapping[Outcome, int] = {"pass": 0, "fail": 1, "error": 2, "not measured": 3}
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]*")
_TABLE = re.compile(r"[a-z0-9][a-z0-9-]*\.csv")


@total_ordering
class Severity(Enum):
    """How grave a finding is; ordered, `info < low < medium < high < critical`."""

    info = "info"
    low = "low"
    medium = "medium"
    high = "high"
    critical = "critical"

    def __lt__(self, other: object) -> bool:
        if not isinstance(other, Severity):
            return NotImplemented
        order = list(Severity)
        return order.index(self) < order.index(other)

    def __str__(self) -> str:
        return self.value

    @classmethod
    def parse(cls, text: str) -> Severity:
        try:
            return cls(text)
        except ValueError:
            raise ValueError(f"expected a severity out of {', '.join(s.value for s in cls)}, got {text!r}") from None


@dataclass(frozen=True)
class Rule:
    """One row of the severity table: what it reads, which way is bad, and the threshold of every level it has."""

    says: str
    worse: Literal["small", "large"]
    levels: Mapping[Severity, float]

    def reads(self, estimate: Estimate) -> float:
        """The end of the interval that is worse for the model."""
        return estimate.low if self.worse == "small" else estimate.high

    def applies(self, level: Severity, number: float) -> bool:
        return number <= self.levels[level] if self.worse == "small" else number >= self.levels[level]

    def record(self) -> dict[str, object]:
        return {"says": self.says, "worse": self.worse, **{level.value: at for level, at in self.levels.items()}}


def rules(own: Mapping[str, object] | None = None) -> dict[str, Rule]:
    """The severity table of the package, `severity.toml`, with the user's `own` table laid over it.

    `own` has the file's form, `{area: {rule: {level: threshold}}}`; a level set to False is removed. A threshold that
    is no number, or that a graver level passes by, is a `ValueError`.
    """
    table = cast("dict[str, object]", tomllib.loads((files("buckler") / "severity.toml").read_text("utf8")))
    merged: dict[str, dict[str, object]] = {}
    for source in (table, own or {}):
        for area, entries in source.items():
            for name, row in _mapping(entries, area).items():
                path = f"{area}.{name}"
                merged[path] = {**merged.get(path, {}), **_mapping(row, path)}
    return {path: _rule(path, row) for path, row in merged.items()}


def _mapping(value: object, where: str) -> Mapping[str, object]:
    if not isinstance(value, Mapping):
        raise ValueError(f"severity {where}: expected a table [severity.area.rule] with thresholds, got {value!r}")
    return cast("Mapping[str, object]", value)


def _rule(path: str, row: Mapping[str, object]) -> Rule:
    unknown = set(row) - {"says", "worse", *(level.value for level in Severity)}
    if unknown or row.get("worse") not in ("small", "large"):
        raise ValueError(
            f"severity {path}: expected says, worse = 'small' or 'large', and thresholds for "
            f"{', '.join(level.value for level in Severity)}, got {dict(row)}"
        )
    levels: dict[Severity, float] = {}
    for level in sorted(Severity, reverse=True):
        at = row.get(level.value, False)
        if at is False:
            continue
        if isinstance(at, bool) or not isinstance(at, int | float) or not math.isfinite(at):
            raise ValueError(f"severity {path}: expected a number or false for {level}, got {at!r}")
        levels[level] = float(at)
    thresholds = list(levels.values())
    if thresholds != sorted(thresholds, reverse=row["worse"] == "large"):
        raise ValueError(f"severity {path}: expected thresholds in the order of the levels, got {levels_text(levels)}")
    return Rule(str(row.get("says", "")), cast(Literal["small", "large"], row["worse"]), levels)


def levels_text(levels: Mapping[Severity, float]) -> str:
    return ", ".join(f"{level} {at:g}" for level, at in levels.items())


def severity(rule: str, estimate: Estimate, table: Mapping[str, Rule] | None = None) -> Severity:
    """How grave `estimate` is by `rule` of `table` (`rules()` if none is given); see `severity.toml`."""
    return _judge(rule, estimate, table)[0]


def because(rule: str, estimate: Estimate, table: Mapping[str, Rule] | None = None, *, of: str = "") -> str:
    """The sentence that says why `severity` says what it says; `of` names the estimate where a reader sees several."""
    return _judge(rule, estimate, table, of)[1]


def _judge(rule: str, estimate: Estimate, table: Mapping[str, Rule] | None, of: str = "") -> tuple[Severity, str]:
    table = rules() if table is None else table
    if rule not in table:
        raise ValueError(f"expected a severity rule out of {', '.join(sorted(table))}, got {rule!r}")
    row = table[rule]
    number = row.reads(estimate)
    if math.isnan(number):
        raise ValueError(f"expected a measured estimate for {rule}, got {estimate}: say 'not measured' instead")
    end = "lower" if row.worse == "small" else "upper"
    side = "at or below" if row.worse == "small" else "at or above"
    start = f"The {end} end of the interval{f' of {of}' if of else ''}, {number:.3g}, is"
    for level in row.levels:
        if row.applies(level, number):
            return level, f"{start} {side} {row.levels[level]:g}, the threshold for {level} ({rule})."
    return Severity.info, f"{start} not {side} any threshold ({rule}: {levels_text(row.levels)})."


@dataclass(frozen=True)
class Figure:
    """One picture: `svg` text or `png` bytes; `alt` says in words what it shows, with its numbers."""

    name: str
    caption: str
    alt: str
    svg: str = ""
    png: bytes = b""

    def __post_init__(self) -> None:
        if bool(self.svg) == bool(self.png):
            raise ValueError(
                f"figure {self.name!r}: expected either svg or png, got {'both' if self.svg else 'neither'}"
            )
        if not self.alt:
            raise ValueError(f"figure {self.name!r}: expected a text that says what it shows (alt), got none")


@dataclass(frozen=True)
class NotMeasured:
    """What the audit did not look at, and why; `cell` is its place on the life-cycle map, where it has one."""

    what: str
    why: str
    cell: Cell | None = None

    def __post_init__(self) -> None:
        _check_cell(self.what, self.cell)


@dataclass(frozen=True, kw_only=True)
class Finding:
    id: str
    """Letters, digits and `. _ / -`; the rule id in SARIF: `evasion/white-box/linf`."""
    title: str
    state: State
    severity: Severity = Severity.info
    """`info` unless the state is `found`."""
    because: str = ""
    """Why this severity, in one sentence; see `because`."""
    claim: str
    """One sentence; what a reader should take away."""
    cell: Cell
    """The place on the life-cycle map."""
    estimates: dict[str, Estimate] = field(default_factory=dict)
    """What the claim rests on; the first one is shown on the map and in the summary."""
    threat: Threat | None = None
    checks: tuple[Check, ...] = ()
    figures: tuple[Figure, ...] = ()
    remedy: str = ""
    remedy_methods: tuple[str, ...] = ()
    """Paths of the methods that answer it: `evasion/trades`."""
    remedied: dict[str, Estimate] = field(default_factory=dict)
    """What the remedy was measured to give, where it was tried."""
    tags: tuple[str, ...] = ()
    cost: Cost = field(default_factory=Cost)
    trials: tuple[str, ...] = ()
    """Fingerprints of the trials it rests on."""
    reproduce: str = ""
    """The command that repeats the measurement."""
    tables: dict[str, str] = field(default_factory=dict[str, str])
    """Files that are written beside the report, `name.csv` to text."""
    grid: tuple[tuple[str, ...], ...] = ()
    """A table of texts, its head first, for what an estimate's own table cannot hold."""

    def __post_init__(self) -> None:
        if not _ID.fullmatch(self.id):
            raise ValueError(f"expected a finding id of letters, digits and . _ / -, got {self.id!r}")
        for name in self.tables:
            if not _TABLE.fullmatch(name):
                raise ValueError(f"finding {self.id}: expected a table's name such as suspects.csv, got {name!r}")
        if self.state not in STATES:
            raise ValueError(f"finding {self.id}: expected a state out of {', '.join(STATES)}, got {self.state!r}")
        if self.state != "found" and self.severity is not Severity.info:
            raise ValueError(f"finding {self.id}: expected severity info for what is {self.state}, got {self.severity}")
        _check_cell(f"finding {self.id}", self.cell)
        for group in (self.estimates, self.remedied):
            for name, estimate in cast("dict[str, object]", group).items():
                if not isinstance(estimate, Estimate):
                    raise ValueError(
                        f"finding {self.id}: expected an Estimate for {name!r}, got {estimate!r}: "
                        "a number without n and an interval is not reported"
                    )
        for tag in self.tags:
            tag_name(tag)

    @property
    def headline(self) -> tuple[str, Estimate] | None:
        """The estimate to show where there is room for one."""
        return next(iter(self.estimates.items()), None)


def _check_cell(what: str, cell: tuple[str, str] | None) -> None:
    if cell is not None and not (len(cell) == 2 and cell[0] in STAGES and cell[1] in PROPERTIES):
        raise ValueError(
            f"{what}: expected a cell (stage, property) out of {', '.join(STAGES)} x {', '.join(PROPERTIES)}, "
            f"got {cell}"
        )


@dataclass(frozen=True, kw_only=True)
class Report:
    """All that is known at the end of an audit; every output is a projection of it."""

    name: str
    created: str
    """When, as ISO 8601 with a time zone."""
    subject: dict[str, str]
    """Name, file, fingerprints of weights and data, what access was given: as the audit knows them."""
    plan: dict[str, object] = field(default_factory=dict)
    gate: Severity = Severity.high
    """Findings at or above it fail the audit."""
    findings: tuple[Finding, ...] = ()
    not_measured: tuple[NotMeasured, ...] = ()
    contradictions: tuple[str, ...] = ()
    """Results that cannot all be true (a certificate broken by an attack), one sentence each. Any one is an error."""
    trials: tuple[dict[str, object], ...] = ()
    """The trial records, as `Trial.record` gives them."""
    severities: dict[str, dict[str, object]] = field(default_factory=dict)
    """The severity table in force: `{path: rule.record()}`."""
    versions: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0
    schema: str = SCHEMA

    def __post_init__(self) -> None:
        if self.schema != SCHEMA:
            raise ValueError(f"expected a report of schema {SCHEMA}, got {self.schema!r}")
        seen: set[str] = set()
        for finding in self.findings:
            if finding.id in seen:
                raise ValueError(f"expected every finding id once, got {finding.id!r} twice")
            seen.add(finding.id)


@dataclass(frozen=True)
class Verdicts:
    """What an area's `judge` makes of its trials."""

    findings: tuple[Finding, ...] = ()
    not_measured: tuple[NotMeasured, ...] = ()
    contradictions: tuple[str, ...] = ()


@dataclass(frozen=True)
class Verdict:
    outcome: Outcome
    exit_code: int
    says: str


def verdict(report: Report) -> Verdict:
    """The one verdict, from which the exit code and every output are taken.

    Contradicting results are an error whatever else was found. A finding at or above the gate then fails the audit,
    even if another check ended in an error: no answer of that check could change it. Otherwise a check that ended in
    an error is an error. An audit whose attacks could not decide a finding, or in which nothing was judged by a rule,
    is not measured: no pass comes from an inconclusive attack. The rest passes.
    """
    found = [f for f in report.findings if f.state == "found"]
    failing = sorted((f for f in found if f.severity >= report.gate), key=lambda f: f.severity, reverse=True)
    errors = [f for f in report.findings if f.state == "error"]
    judged = [f for f in found if f.because or f.severity > Severity.info]
    judged += [f for f in report.findings if f.state == "clear"]
    undecided = [f for f in report.findings if f.state == "not measured"]
    missing = sum(f.state == "not measured" for f in report.findings) + len(report.not_measured)
    rest = f" {_count(missing, 'check')} not measured." if missing else ""
    if report.contradictions:
        first = _sentence(report.contradictions[0])
        return _verdict("error", f"The results contradict each other, so none is signed off: {first}")
    if failing:
        broken = f" {_count(len(errors), 'check')} ended in an error." if errors else ""
        worst = failing[0]
        return _verdict(
            "fail",
            f"{_count(len(failing), 'finding')} at or above {report.gate}, the gravest {worst.severity}: "
            f"{_sentence(worst.title)}{broken}{rest}",
        )
    if errors:
        return _verdict(
            "error", f"{_count(len(errors), 'check')} ended in an error: {_sentence(errors[0].claim)}{rest}"
        )
    if not judged:
        what = "What was measured is not graded" if found else "Nothing could be measured"
        return _verdict("not measured", f"{what}, so nothing is known about this model's security.")
    if undecided:
        return _verdict("not measured", f"{_sentence(undecided[0].title)}{rest}")
    below = f"{_count(len(found), 'finding')} below it" if found else "nothing found"
    return _verdict("pass", f"No finding at or above {report.gate}; {below}.{rest}")


def _verdict(outcome: Outcome, says: str) -> Verdict:
    return Verdict(outcome, EXIT_CODES[outcome], says)


def _count(many: int, what: str) -> str:
    return f"{many} {what}{'' if many == 1 else 's'}"


def _sentence(text: str) -> str:
    line = " ".join(text.split())
    return line if line.endswith((".", "!", "?")) else f"{line}."
