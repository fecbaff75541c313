"""What a person at a terminal sees: progress on stderr while an audit runs, the verdict on stdout when it is over."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.text import Text

from buckler.audit import Progress as Step
from buckler.compare import Pair
from buckler.findings import Report, verdict
from buckler.report._view import grade, in_words, ordered
from buckler.trial import Check, Trial

Display = Literal["auto", "rich", "plain", "none"]
COLOURS = {"critical": "bold red", "high": "red", "medium": "yellow", "low": "cyan", "error": "bold magenta"}
EVERY = 10.0
"""Seconds between two lines about the same thing on a plain display."""


def chosen(display: Display) -> Display:
    """`auto` is bars on a terminal and lines elsewhere."""
    return display if display != "auto" else "rich" if Console(stderr=True).is_terminal else "plain"


@contextmanager
def following(display: Display) -> Generator[Callable[[Step], None], None, None]:
    """Show the steps of an audit as they are told."""
    if display == "none":
        yield lambda step: None
    elif display == "plain":
        yield _lines(Console(stderr=True, soft_wrap=True, highlight=False))
    else:
        with _bars() as bars:
            whole = bars.add_task("audit", total=None, says="")
            yield _drawn(bars, whole, {})


@contextmanager
def working(display: Display, what: str, unit: str) -> Generator[Callable[[float, float], None], None, None]:
    """Show how far one thing is, with a number that it tells; nothing is shown if it never begins."""
    if display == "none":
        yield lambda share, number: None
    elif display == "plain":
        tell = _lines(Console(stderr=True, soft_wrap=True, highlight=False))
        yield lambda share, number: tell(Step("running", 0, 1, what, share, says=f"{unit} {number:,.4g}"))
    else:
        tasks: list[TaskID] = []
        with _bars() as bars:

            def tick(share: float, number: float) -> None:
                if not tasks:
                    tasks.append(bars.add_task(what, total=1.0, says=""))
                bars.update(tasks[0], completed=share, says=f"{unit} {number:,.4g}")

            yield tick


def show_report(report: Report, out: Path) -> None:
    """The verdict, a line for each finding, and where the report is."""
    console = Console(soft_wrap=True, highlight=False)
    ruling = verdict(report)
    style = {"pass": "bold green", "fail": "bold red"}.get(ruling.outcome, "bold yellow")
    console.print(Text.assemble((ruling.outcome.upper(), style), f"  {report.name}: {ruling.says}"))
    for finding in ordered(report.findings):
        word = grade(finding.state, finding.severity)
        number = (
            f"  {finding.headline[0].replace('_', ' ')} {in_words(finding.headline[1])}" if finding.headline else ""
        )
        console.print(Text.assemble((f"{word:13}", COLOURS.get(word, "")), f"{finding.title}{number}"))
    for item in report.not_measured if len(report.not_measured) <= 5 else ():
        console.print(Text(f"not measured {item.what}: {item.why}"))
    if len(report.not_measured) > 5:
        console.print(Text(f"not measured {len(report.not_measured)} things, which the report lists"))
    console.print(Text(f"report: {out / 'report.html'}"))


def show_trial(trial: Trial, contract: Sequence[Check] = ()) -> None:
    """One trial: what was measured, what it cost, and what is doubted of it, of the model and of the data."""
    console = Console(soft_wrap=True, highlight=False)
    head = f"{trial.method} on {trial.subject['name']}, {trial.threat.within}: {trial.status}"
    console.print(Text(f"{head} ({trial.reason})" if trial.reason else head))
    for name, estimate in trial.estimates.items():
        console.print(Text(f"  {name.replace('_', ' '):24} {in_words(estimate)}"))
    for check in (*contract, *trial.checks):
        if not check.passed:
            console.print(Text(f"  doubt: {check.says}"))
    cost = trial.cost
    console.print(
        Text(
            f"  cost: {cost.forwards:,} forwards, {cost.backwards:,} backwards, {cost.queries:,} queries, "
            f"{cost.seconds:.1f} s"
        )
    )


def show_pairs(pairs: list[Pair], alone: list[str]) -> None:
    console = Console(soft_wrap=True, highlight=False)
    for pair in pairs:
        change = f"; on the same rows {in_words(pair.change)}" if pair.change else ""
        name = f"{pair.method} at {pair.within}, {pair.name.replace('_', ' ')}"
        console.print(Text(f"{name}: {in_words(pair.before)} -> {in_words(pair.after)}{change}"))
    for text in alone:
        console.print(Text(text))
    if not pairs:
        console.print(Text("These runs have no trial in common: same method, same parameters, same threat."))


def _bars() -> Progress:
    return Progress(
        TextColumn("{task.description:28}"),
        BarColumn(bar_width=24),
        TextColumn("{task.percentage:>3.0f}%"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[says]}"),
        console=Console(stderr=True),
        transient=True,
    )


def _drawn(bars: Progress, whole: TaskID, tasks: dict[int, TaskID]) -> Callable[[Step], None]:
    """Bars: one for the audit, one for each trial that runs; a finished trial becomes a line above them."""
    shares: dict[int, float] = {}

    def tell(step: Step) -> None:
        shares[step.index] = max(step.share, shares.get(step.index, 0.0)) if step.state == "running" else 1.0
        bars.update(whole, total=step.total, completed=sum(shares.values()))
        if step.state == "running":
            if step.index not in tasks:
                tasks[step.index] = bars.add_task(f"  {step.method}", total=1.0, says="")
            bars.update(tasks[step.index], completed=step.share, says=f"{step.forwards:,} forwards")
        else:
            if step.index in tasks:
                bars.update(tasks[step.index], visible=False)
            bars.console.print(Text(_line(step)), soft_wrap=True, highlight=False)

    return tell


def _lines(console: Console) -> Callable[[Step], None]:
    """Lines: one when a trial is over, and one now and then while it runs."""
    told: dict[int, float] = {}

    def tell(step: Step) -> None:
        now = time.monotonic()
        if step.state == "running" and now - told.setdefault(step.index, now) < EVERY:
            return
        told[step.index] = now
        console.print(Text(_line(step)))

    return tell


def _line(step: Step) -> str:
    place = f"[{step.index + 1}/{step.total}] {step.method}"
    if step.state == "running":
        return f"{place} {step.share:.0%}{f', {step.says}' if step.says else ''}"
    words = {"kept": "kept from before", "left out": "left out", "done": "done"}[step.state]
    return f"{place} {words}{f': {step.says}' if step.says else ''}"
