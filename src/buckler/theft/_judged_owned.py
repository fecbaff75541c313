"""Whether a suspect model can be shown to be the owner's, by each method, and what thieves do about it.

A finding is information: it says which removals a claim survives. Claims of models that have nothing to do with the
owner's are the one thing that is graded, because they accuse the innocent: where there are more than chance makes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from buckler.claims import by_chance
from buckler.findings import Cell, Finding, NotMeasured, Rule, Severity, Verdicts, severity
from buckler.judging import named, resting
from buckler.report.strips import strips
from buckler.theft._owned import LEVEL, OTHERS, OWN, PLAUSIBLE, REMOVALS, SAME, TINY
from buckler.trial import Trial

RULE = "theft.false_claims"
WEIGHTS: Cell = ("weights", "confidentiality")
ASKED = ("rows", "train_rows", "training_epochs")
"""What `evaluate` may be asked beside a method's own knobs, as flags."""
GROUPS = {OWN: "the owner's model", **REMOVALS, SAME: "same rows, no mark", OTHERS: "independent"}
SHOWN = {
    "false_claims": "independent models claimed",
    "accuracy_own": "accuracy of the owner's model",
    "accuracy_lost": "rows lost by marking",
    **{f"accuracy_{name}": f"accuracy of the model {words}" for name, words in REMOVALS.items()},
    "accuracy_independent": "accuracy of an independent model",
}


def of_ownership(trials: Sequence[Trial], table: Mapping[str, Rule], command: str) -> Verdicts:
    """A finding for each method, and what could not be measured."""
    good = [trial for trial in trials if trial.status == "ok"]
    methods = dict.fromkeys(trial.method for trial in good)
    findings = [_finding([trial for trial in good if trial.method == one], table, command) for one in methods]
    missing = [NotMeasured(trial.method, trial.reason, WEIGHTS) for trial in trials if trial.status != "ok"]
    return Verdicts(tuple(findings), tuple(missing))


def _finding(trials: Sequence[Trial], table: Mapping[str, Rule], command: str) -> Finding:
    shown = max(trials, key=lambda trial: trial.estimates["false_claims"].value)
    effect, name = shown.estimates["false_claims"], shown.method.rpartition("/")[2]
    wrong = _wrong(shown)
    least = replace(effect, value=effect.low, high=effect.low)
    found = Finding(
        id=f"theft/ownership/{name.replace('_', '-')}",
        title=f"Whether a stolen model is shown to be the owner's by {name.replace('_', ' ')}",
        state="found",
        severity=severity(RULE, least, table) if wrong else Severity.info,
        because=f"At the least {least.value:.3g} of independent models are claimed ({RULE})." if wrong else "",
        claim=" ".join(_claim(trial) for trial in trials),
        cell=WEIGHTS,
        estimates={title: shown.estimates[key] for key, title in SHOWN.items() if key in shown.estimates},
        figures=tuple(
            strips(_groups(trial), level=LEVEL, name=f"claims-{name.replace('_', '-')}-{index + 1}")
            for index, trial in enumerate(trials)
        ),
        remedy="Claim nobody by this method until its null holds: see what its p-value assumes." if wrong else "",
        tables={f"claims-{name.replace('_', '-')}.csv": _table(trials)},
    )
    return resting(found, trials, shown, command, ASKED)


def _groups(trial: Trial) -> dict[str, list[float]]:
    return {words: _p(trial, group) for group, words in GROUPS.items() if f"p_{group}" in trial.evidence}


def _named(trial: Trial) -> str:
    """A trial's method with its own knobs, as a sentence begins with it: `Watermark (triggers 50)`."""
    return named(trial, trial.method.rpartition("/")[2].replace("_", " ").capitalize())


def _p(trial: Trial, group: str) -> list[float]:
    return trial.evidence[f"p_{group}"].tolist()


def _hits(trial: Trial) -> int:
    return sum(p <= LEVEL for p in _p(trial, OTHERS))


def _by_chance(trial: Trial) -> float:
    """The most probable that p-values that are right claim as many independent models as were claimed."""
    return by_chance(_hits(trial), len(_p(trial, OTHERS)), LEVEL)


def _wrong(trial: Trial) -> bool:
    """Whether more independent models are claimed than chance makes plausible."""
    return _by_chance(trial) <= PLAUSIBLE


def _claim(trial: Trial) -> str:
    own, others, hits = _p(trial, OWN)[0], _p(trial, OTHERS), _hits(trial)
    kept = [words for name, words in REMOVALS.items() if _p(trial, name)[0] <= LEVEL]
    lost = [words for name, words in REMOVALS.items() if _p(trial, name)[0] > LEVEL]
    words = f"{_named(trial)} claims {hits or 'none'} of {len(others)} independent models"
    words += f", which chance does in {100 * _by_chance(trial):.2g} % of such trials at most" if hits else ""
    words += ": its claims prove nothing." if _wrong(trial) else "."
    if own > LEVEL:
        return f"{words} It does not claim the owner's own model ({_said(own)}, where {LEVEL:.0%} is needed)."
    words += f" It claims the owner's own model ({_said(own)})"
    words += f", and one {' or '.join(kept)}" if kept else ""
    return words + (f", but none {' or '.join(lost)}." if lost else ".")


def _said(p: float) -> str:
    return f"p = {p:.2g}" if p > 2 * TINY else f"p at most {TINY:.0e}"


def _table(trials: Sequence[Trial]) -> str:
    """Every p-value as CSV."""
    rows = ((t, group, p) for t in trials for group, values in _groups(t).items() for p in values)
    return "method,suspect,p,claimed\n" + "".join(
        f'"{_named(t)}","{group}",{p:.6g},{p <= LEVEL}\n' for t, group, p in rows
    )
