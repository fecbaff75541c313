"""What every area's judge does alike: name a trial's own knobs, repeat it, and say what a finding rests on."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from typing import cast

from buckler.catalog import find
from buckler.findings import Finding
from buckler.method import describe
from buckler.trial import Check, Cost, Trial


def changed(trial: Trial) -> dict[str, object]:
    """The knobs of a trial's method that are not at their defaults; none of a method that is not in the catalogue.

    The seed is the trial's own. Text where nothing is the default stands for rows or a function that no flag can say.
    """
    with suppress(ValueError):
        usual = describe(find(trial.method)).params
        mine = {name: value for name, value in trial.params.items() if name in usual and name != "seed"}
        return {
            name: value
            for name, value in mine.items()
            if value != usual[name] and not (usual[name] is None and isinstance(value, str))
        }
    return {}


def named(trial: Trial, name: str = "") -> str:
    """A trial as a reader is told of it, by its path or another `name`: `theft/knockoff (strategy adaptive)`."""
    own = ", ".join(f"{knob.replace('_', ' ')} {said(value)}" for knob, value in changed(trial).items())
    return f"{name or trial.method} ({own})" if own else name or trial.method


def repeat(command: str, trial: Trial, asked: Sequence[str]) -> str:
    """The command that repeats a trial: what of `asked` it was asked, and every other knob that is not the default.

    `command` is its beginning, with `{method}` for the path. A trial of what no flag can say, such as an attack with
    knobs of its own, has no command.
    """
    values = {name: trial.params[name] for name in asked if name in trial.params}
    words = command.replace("{method}", trial.method)
    for name, value in (values | changed(trial)).items():
        if isinstance(value, dict):
            return ""
        words += f" --{name.replace('_', '-')} {said(value)}"
    return words


def said(value: object) -> str:
    """A knob's value as a flag takes it: several values with commas between them."""
    return ",".join(said(item) for item in cast("list[object]", value)) if isinstance(value, list) else str(value)


def resting(finding: Finding, on: Sequence[Trial], shown: Trial, command: str, asked: Sequence[str]) -> Finding:
    """`finding` with what it rests on: threat, tags and command of the trial `shown`, doubts and cost of all."""
    return replace(
        finding,
        threat=shown.threat,
        tags=shown.threat.tags,
        checks=once((shown, *on)),
        cost=total(on),
        trials=tuple(trial.fingerprint for trial in on),
        reproduce=repeat(command, shown, asked),
    )


def once(trials: Iterable[Trial]) -> tuple[Check, ...]:
    """Every doubt once: the failed one if it failed anywhere, else that of the first trial that has it."""
    merged: dict[str, Check] = {}
    for trial in trials:
        for check in trial.checks:
            if check.name not in merged or not check.passed:
                merged[check.name] = check
    return tuple(merged.values())


def total(trials: Sequence[Trial]) -> Cost:
    """What all of the trials cost together; of memory the most that one took."""
    spent = [asdict(trial.cost) for trial in trials]
    return Cost(**{name: (max if name == "peak_bytes" else sum)(cost[name] for cost in spent) for name in spent[0]})
