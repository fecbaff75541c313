"""Whether a suspect encoder can be shown to be the owner's, by each method, and what thieves do about it.

A finding is information: it says which removals a claim survives. Claims of encoders that have nothing to do with the
owner's are the one thing that is graded, because they accuse the innocent: where there are more than chance makes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from buckler.claims import by_chance
from buckler.encoders._owned import LEVEL, OTHERS, OWN, PLAUSIBLE, REMOVALS, SAME
from buckler.encoders._problems import Row
from buckler.findings import Cell, Finding, NotMeasured, Rule, Severity, Verdicts, severity
from buckler.judging import named, resting
from buckler.report.strips import strips
from buckler.trial import Trial

RULE = "encoders.false_claims"
CELL: Cell = ("weights", "confidentiality")
ASKED = ("rows", "train_rows", "encoder_steps", "models")
"""What `evaluate` may be asked beside a method's own knobs, as flags."""
GROUPS = {OWN: "the owner's encoder", **REMOVALS, SAME: "same rows, other draws", OTHERS: "independent"}
SHOWN = {
    "false_claims": "independent encoders claimed",
    "own_few_accuracy": "accuracy of probes of few labels above the owner's encoder",
    "lost": "rows lost by marking, few labels",
    **{f"{name}_few_accuracy": f"accuracy above one {words}" for name, words in REMOVALS.items()},
    "independent_few_accuracy": "accuracy above an independent encoder",
}


def of_ownership(trials: Sequence[Trial], table: Mapping[str, Rule], command: str) -> tuple[Verdicts, tuple[Row, ...]]:
    """A finding for each method, and what could not be measured."""
    good = [trial for trial in trials if trial.status == "ok"]
    methods = dict.fromkeys(trial.method for trial in good)
    findings = [_finding([trial for trial in good if trial.method == one], table, command) for one in methods]
    missing = tuple(NotMeasured(named(trial), trial.reason, CELL) for trial in trials if trial.status != "ok")
    return Verdicts(tuple(findings), missing), ()


def _finding(trials: Sequence[Trial], table: Mapping[str, Rule], command: str) -> Finding:
    shown = max(trials, key=lambda trial: trial.estimates["false_claims"].value)
    effect, name = shown.estimates["false_claims"], shown.method.rpartition("/")[2].replace("_", "-").replace(":", "-")
    wrong = _by_chance(shown) <= PLAUSIBLE
    least = replace(effect, value=effect.low, high=effect.low)
    found = Finding(
        id=f"encoders/stealing/ownership/{name}",
        title=f"Whether a stolen encoder is shown to be the owner's by {name}",
        state="found",
        severity=severity(RULE, least, table) if wrong else Severity.info,
        because=f"At the least {least.value:.3g} of independent encoders are claimed ({RULE})." if wrong else "",
        claim=" ".join(_claim(trial) for trial in trials),
        cell=CELL,
        estimates={title: shown.estimates[key] for key, title in SHOWN.items() if key in shown.estimates},
        figures=tuple(
            strips(_groups(trial), level=LEVEL, name=f"encoder-claims-{name}-{index + 1}")
            for index, trial in enumerate(trials)
        ),
        remedy="Claim nobody by this method until its null holds: see what its p-value assumes." if wrong else "",
        tables={f"encoder-claims-{name}.csv": _table(trials)},
    )
    return resting(found, trials, shown, command, ASKED)


def _p(trial: Trial, group: str) -> list[float]:
    return trial.evidence[f"p_{group}"].tolist()


def _groups(trial: Trial) -> dict[str, list[float]]:
    return {words: _p(trial, group) for group, words in GROUPS.items() if f"p_{group}" in trial.evidence}


def _by_chance(trial: Trial) -> float:
    """The most probable that p-values that are right claim as many independent encoders as were claimed."""
    claimed = trial.evidence[f"claimed_{OTHERS}"]
    return by_chance(int(claimed.sum()), len(claimed), LEVEL)


def _claim(trial: Trial) -> str:
    others = _p(trial, OTHERS)
    hits, own = sum(p <= LEVEL for p in others), _p(trial, OWN)[0]
    words = f"{_named(trial)} claims {hits or 'none'} of {len(others)} independent encoders"
    words += ": its claims prove nothing." if _by_chance(trial) <= PLAUSIBLE else "."
    if SAME in (group for group in GROUPS if f"p_{group}" in trial.evidence):
        words += f" One made of the owner's rows by other draws has p = {_p(trial, SAME)[0]:.2g}."
    if own > LEVEL:
        return f"{words} It does not claim the owner's own encoder (p = {own:.2g}, where {LEVEL:.1%} is needed)."
    kept = [said for name, said in REMOVALS.items() if _p(trial, name)[0] <= LEVEL]
    lost = [said for name, said in REMOVALS.items() if _p(trial, name)[0] > LEVEL]
    words += f" It claims the owner's own (p = {own:.2g})"
    words += f", and one {' or '.join(kept)}" if kept else ""
    return words + (f", but none {' or '.join(lost)}." if lost else ".")


def _named(trial: Trial) -> str:
    return named(trial, trial.method.rpartition("/")[2])


def _table(trials: Sequence[Trial]) -> str:
    """Every p-value as CSV."""
    rows = ((t, group, p) for t in trials for group, values in _groups(t).items() for p in values)
    return "method,suspect,p,claimed\n" + "".join(
        f'"{_named(t)}","{group}",{p:.6g},{p <= LEVEL}\n' for t, group, p in rows
    )
