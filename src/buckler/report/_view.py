"""What the projections share: how numbers are written, in what order findings stand, what a cell of the map shows."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from buckler.findings import PROPERTIES, STAGES, Cell, Finding, NotMeasured, Report, Severity, State
from buckler.stats import Estimate

_STATES: tuple[State, ...] = ("found", "error", "clear", "not measured")


@dataclass(frozen=True)
class Square:
    """One cell of the life-cycle map: its state and severity, the finding it shows, and what else is in it."""

    state: State
    severity: Severity
    shown: Finding | None
    others: int
    missing: tuple[NotMeasured, ...]


@dataclass(frozen=True)
class Span:
    """Where an estimate lies on its axis: shares of the axis's length, and the names of its two ends."""

    low: float
    value: float
    high: float
    start: str
    end: str


def ordered(findings: Iterable[Finding]) -> list[Finding]:
    """The gravest first; then errors, what is clear, and what was not measured."""
    return sorted(findings, key=lambda f: (_STATES.index(f.state), -list(Severity).index(f.severity)))


def life_cycle(report: Report) -> dict[Cell, Square]:
    """Every cell of the map. The gravest finding is shown; where none was made, an error outranks a clear result. A
    table of other findings is of no cell."""
    squares: dict[Cell, Square] = {}
    for stage in STAGES:
        for prop in PROPERTIES:
            here = ordered(f for f in report.findings if f.cell == (stage, prop) and not f.grid)
            missing = tuple(entry for entry in report.not_measured if entry.cell == (stage, prop))
            first = here[0] if here else None
            state = first.state if first else "not measured"
            grade = first.severity if first else Severity.info
            squares[stage, prop] = Square(state, grade, first, max(0, len(here) - 1), missing)
    return squares


def grade(state: State, severity: Severity) -> str:
    """The one word for a finding: its severity where something was found, else its state."""
    return severity.value if state == "found" else state


def is_share(estimate: Estimate) -> bool:
    return estimate.how.startswith("share")


def _is_difference(estimate: Estimate) -> bool:
    return estimate.how.startswith("difference")


def _text(value: float, estimate: Estimate) -> str:
    if math.isnan(value):
        return "undefined"
    if math.isinf(value):
        return "\u221e" if value > 0 else "\u2212\u221e"
    if is_share(estimate):
        return f"{100 * value:.2f}" if 0 < value < 0.001 else f"{100 * value:.1f}"
    if _is_difference(estimate):
        return f"{100 * value:+.1f}".replace("-", "\u2212")
    return f"{value:.3g}".replace("-", "\u2212")


def number(estimate: Estimate) -> str:
    """The value as a reader wants it: a share in per cent, a difference of shares in points, else three digits."""
    unit = "%" if is_share(estimate) else " points" if _is_difference(estimate) else ""
    return "no rows" if estimate.n == 0 else _text(estimate.value, estimate) + unit


def interval(estimate: Estimate) -> str:
    """The interval in the value's own unit: `24.9 to 38.0`."""
    return "" if estimate.n == 0 else f"{_text(estimate.low, estimate)} to {_text(estimate.high, estimate)}"


def level(estimate: Estimate) -> str:
    return f"{100 * estimate.level:g}%"


def in_words(estimate: Estimate) -> str:
    """Value, interval and n on one line, for outputs without a layout."""
    if estimate.n == 0:
        return "no rows"
    return f"{number(estimate)} ({level(estimate)} interval {interval(estimate)}, n = {estimate.n})"


def span(estimate: Estimate) -> Span | None:
    """Where to draw an estimate: shares on 0 to 100 %, differences on -100 to 100 points, else from 0 to what fits."""
    if estimate.n == 0 or not math.isfinite(estimate.value):
        return None
    if is_share(estimate):
        start, end, names = 0.0, 1.0, ("0", "100%")
    elif _is_difference(estimate):
        start, end, names = -1.0, 1.0, ("\u2212100", "+100")
    else:
        finite = [v for v in (estimate.low, estimate.value, estimate.high) if math.isfinite(v)]
        start, end = min(0.0, *finite), max(0.0, *finite)
        end = end if end > start else start + 1.0
        names = (f"{start:.3g}", f"{end:.3g}")

    def place(value: float) -> float:
        return min(1.0, max(0.0, (value - start) / (end - start)))

    return Span(place(estimate.low), place(estimate.value), place(estimate.high), *names)


def seconds(value: float) -> str:
    """A duration: `0.4 s`, `2 min 5 s`, `1 h 3 min`."""
    if value < 60:
        return f"{value:.1f} s"
    whole = round(value)
    return f"{whole // 60} min {whole % 60} s" if whole < 3600 else f"{whole // 3600} h {whole % 3600 // 60} min"


def memory(value: int) -> str:
    return f"{value / 2**30:.1f} GiB" if value >= 2**30 else f"{value / 2**20:.0f} MiB"


def facts(finding: Finding) -> list[tuple[str, str]]:
    """What a finding cost, as pairs of a name and a number with its unit; what was not counted is left out."""
    cost = finding.cost
    rows = [
        ("forward passes", f"{cost.forwards:,}" if cost.forwards else ""),
        ("backward passes", f"{cost.backwards:,}" if cost.backwards else ""),
        ("queries", f"{cost.queries:,}" if cost.queries else ""),
        ("time", seconds(cost.seconds) if cost.seconds else ""),
        ("peak memory", memory(cost.peak_bytes) if cost.peak_bytes else ""),
    ]
    return [(name, text) for name, text in rows if text]
