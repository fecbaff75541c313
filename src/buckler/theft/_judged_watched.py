"""Whether those who mean harm are noticed by their questions, by each detector, and what being noticed is worth.

A finding is information, as one on a guard is: no detector watches over the model yet. It says who is flagged, what an
attacker is left with who is stopped there, and what one who knows the detector still gets.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence

from buckler import stats
from buckler.findings import Cell, Figure, Finding, NotMeasured, Rule, Verdicts
from buckler.judging import changed, resting, said
from buckler.report import figures
from buckler.stats import Estimate
from buckler.trial import Trial

QUERIES: Cell = ("queries", "confidentiality")
ASKED = ("rows", "queries", "reveals", "pool", "attack", "train_rows")
"""What `evaluate` may be asked beside a method's own knobs, as flags."""
FEW = 0.05
"""At most this share of honest clients may surely be flagged without a word."""
WORDS = {
    "natural": "different inputs",
    "pool": "the inputs that thieves have",
    "video": "scenes that hardly move",
    "repeats": "one input in ten twice",
}

TITLES = {
    "flagged": "flagged: {}",
    "own": "flagged at its own threshold: {}",
    "first": "question that raises the alarm: {}",
    "spent": "questions sent: {}",
    "fidelity": "agreement of the copy: {}",
    "won": "inputs turned: {}",
}
SHOWN = ("flagged", "fidelity", "won")
"""What the finding has a line for; all is in the table beside the report."""
REMEDY = (
    "Take an alarm as a reason to look, to slow down or to answer with labels alone, not as proof: natural questions "
    "and those tuned to the detector pass it, and accounts can be many. Limit what one account may ask."
)


def of_detection(trials: Sequence[Trial], table: Mapping[str, Rule], command: str) -> Verdicts:
    """A finding for each detector, and what could not be measured; none is graded."""
    del table
    good = [trial for trial in trials if trial.status == "ok"]
    methods = dict.fromkeys(trial.method for trial in good)
    findings = [_finding([trial for trial in good if trial.method == one], command) for one in methods]
    missing = [NotMeasured(trial.method, trial.reason, QUERIES) for trial in trials if trial.status != "ok"]
    return Verdicts(tuple(findings), tuple(missing))


def _finding(trials: Sequence[Trial], command: str) -> Finding:
    shown = trials[0]
    name = re.sub(r"[\W_]+", "-", shown.method.rpartition("/")[2])
    kept = {_title(key): e for key, e in shown.estimates.items() if key.partition("_")[0] in SHOWN}
    found = Finding(
        id=f"theft/detection/{name}",
        title=f"Whether attacks are noticed by their questions: {name.replace('-', ' ')}",
        state="found",
        claim=" ".join(_claim(trial) for trial in trials),
        cell=QUERIES,
        estimates=kept,
        figures=tuple(_figure(trial, f"flagged-{name}-{index + 1}") for index, trial in enumerate(trials)),
        remedy=REMEDY,
        tables={f"detection-{name}.csv": _table(trials)},
    )
    return resting(found, trials, shown, command, ASKED)


def _title(key: str) -> str:
    what, _, of = key.partition("_")
    return TITLES[what].format(_client(of))


def _client(of: str) -> str:
    """Who a client is, as a reader is told of it."""
    if of in WORDS:
        return f"honest, {WORDS[of]}"
    for end, words in (("_adaptive", " that knows the detector"), ("_stopped", " stopped when flagged")):
        if of.endswith(end):
            return of.removesuffix(end).replace("_", " ") + words
    return of.replace("_", " ")


def _attackers(trial: Trial) -> list[str]:
    """Those who were watched, as they are by themselves."""
    names = [key.removeprefix("flagged_") for key in trial.estimates if key.startswith("flagged_")]
    return [name for name in names if name not in WORDS and not name.endswith("_adaptive")]


def _claim(trial: Trial) -> str:
    e, apart, asked = trial.estimates, int(trial.evidence["apart"]), int(trial.evidence["asked"])
    known = [name for name in WORDS if f"flagged_{name}" in e]
    honest = ", ".join(f"{e[f'flagged_{name}'].value:.0%} who send {WORDS[name]}" for name in known)
    silent = not bool(trial.evidence["calibration"].max() > 0)
    put = "at its own threshold, as no honest client is suspicious to it" if silent else "with its alarm put by others"
    words = [f"Of honest clients, {put}, {_named(trial)} flags {honest}, within {asked} questions."]
    if false := [WORDS[name] for name in known if _surely(e[f"flagged_{name}"], apart)]:
        words.append(f"It would turn away who sends {', or '.join(false)}.")
    if _surely(e["own_natural"], apart) and not silent:
        words.append(f"At its own threshold it flags {e['own_natural'].value:.0%} of those who send different inputs.")
    attackers = _attackers(trial)
    caught = [name for name in attackers if e[f"flagged_{name}"].value > 0.5]
    missed = [name for name in attackers if name not in caught]
    if missed:
        *others, last = map(_client, missed)
        words.append(f"It misses {', '.join(others)} and {last}." if others else f"It misses {last}.")
    words += [_of_attack(e, name) for name in caught]
    return " ".join(words)


def _surely(flagged: Estimate, apart: int) -> bool:
    """Whether more than a few of all honest clients are flagged: as sure as `apart` who share no rows make it."""
    return stats.clopper_pearson(flagged.value * apart, apart)[0] > FEW


def _of_attack(e: Mapping[str, Estimate], name: str) -> str:
    """What became of one attacker who is flagged: unwatched, stopped, and knowing the detector."""
    first, again = e[f"first_{name}"].value, e[f"flagged_{name}_adaptive"]
    at = f", in the median at question {first:.0f}" if math.isfinite(first) else ""
    stopped, knowing = _worth(e, name, "_stopped"), _worth(e, name, "_adaptive")
    return (
        f"It catches {_client(name)}{at}: unwatched it {_worth(e, name, '')}, stopped there {stopped}; who knows the "
        f"detector is flagged in {round(again.value * again.n)} of {again.n} and {knowing}."
    )


def _worth(e: Mapping[str, Estimate], name: str, way: str) -> str:
    if f"won_{name}{way}" in e:
        return f"turns {e[f'won_{name}{way}'].value:.0%} of its inputs"
    return f"agrees on {e[f'fidelity_{name}{way}'].value:.1%} of rows"


def _named(trial: Trial) -> str:
    name = trial.method.rpartition("/")[2].capitalize()
    own = ", ".join(f"{knob} {said(value)}" for knob, value in changed(trial).items())
    return f"{name} ({own})" if own else name


def _figure(trial: Trial, name: str) -> Figure:
    shares = {
        _client(key.removeprefix("flagged_")): e for key, e in trial.estimates.items() if key.startswith("flagged")
    }
    return figures.bars(shares, axis="clients flagged", name=name)


def _table(trials: Sequence[Trial]) -> str:
    """Every estimate as CSV."""
    lines = [
        f'"{_named(trial)}","{_title(key)}",{e.value:.6g},{e.low:.6g},{e.high:.6g},{e.n}\n'
        for trial in trials
        for key, e in trial.estimates.items()
        if key.partition("_")[0] in TITLES
    ]
    return "method,of,value,low,high,n\n" + "".join(lines)
