"""Whether owners of images can show that an encoder learnt from them, by each method.

A finding is information: it says how many owners can, with how many images. Claims of what did not learn from an
owner's images are graded, because they accuse the innocent: where there are more than chance makes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from buckler.encoders._problems import PROBLEMS, Row
from buckler.encoders._traced import LEVEL, STOP, wrong
from buckler.findings import Finding, NotMeasured, Rule, Severity, Verdicts, severity
from buckler.judging import named, resting
from buckler.report.strips import strips
from buckler.stats import Estimate
from buckler.trial import Trial

RULE, SAYS = "encoders.false_claims", "owners whose images are traced"
CELL = PROBLEMS["tracing"][1]
ASKED = ("rows", "train_rows", "encoder_steps")
"""What `evaluate` may be asked beside a method's own knobs, as flags."""
GROUPS = {
    "traced": "learnt from their images",
    "stopped": "the same, stopped early",
    "independent": "another encoder",
    "spared": "images that it never saw",
}


def of_tracing(trials: Sequence[Trial], table: Mapping[str, Rule], command: str) -> tuple[Verdicts, tuple[Row, ...]]:
    """A finding for each method, and what could not be measured; the row is of the method that traces most, of those
    whose claims are right."""
    good = [t for t in trials if t.status == "ok"]
    missing = tuple(NotMeasured(named(t), t.reason, CELL) for t in trials if t.status != "ok")
    if not good:
        return Verdicts((), missing), ()
    best = max(good, key=lambda t: (not wrong(t.evidence), t.estimates["traced"].value))
    stopped = "stopped" in best.estimates
    row = Row(
        "tracing",
        named(best).removeprefix("encoders/"),
        SAYS,
        best.estimates["traced"],
        before=best.estimates["few_correct"],
        defence=f"stopping after {STOP:.0%} of the steps" if stopped else "",
        left=best.estimates["stopped"] if stopped else None,
        costs=best.estimates["stopped_change"] if stopped else None,
    )
    methods = dict.fromkeys(t.method for t in good)
    findings = [_finding([t for t in good if t.method == one], best, table, command) for one in methods]
    return Verdicts(tuple(findings), missing), (row,)


def _finding(trials: Sequence[Trial], best: Trial, table: Mapping[str, Rule], command: str) -> Finding:
    shown = max(trials, key=lambda t: t.estimates["traced"].value)
    name, false = shown.method.rpartition("/")[2].replace("_", "-"), shown.estimates["false"]
    accuses, least = any(wrong(trial.evidence) for trial in trials), replace(false, value=false.low, high=false.low)
    found = Finding(
        id="encoders/tracing" if shown.method == best.method else f"encoders/tracing/{name}",
        title=f"Whether owners trace their images to the encoder by {name.replace('-', ' ')}",
        state="found",
        severity=severity(RULE, least, table) if accuses else Severity.info,
        because=f"At the least {least.value:.3g} of owners claim what did not learn from their images ({RULE})."
        if accuses
        else "",
        claim=" ".join(_claim(trial) for trial in trials),
        cell=CELL,
        estimates=_shown(shown),
        figures=tuple(
            strips(_groups(trial), level=LEVEL, name=f"traced-{name}-{index + 1}") for index, trial in enumerate(trials)
        ),
        remedy="Claim nobody by this method until its null holds: see what its p-value assumes." if accuses else "",
        tables={f"traced-{name}.csv": _table(trials)},
    )
    return resting(found, trials, shown, command, ASKED)


def _few(trial: Trial) -> list[str]:
    return [name for name in trial.estimates if name.startswith("traced_of_")]


def _shown(trial: Trial) -> dict[str, Estimate]:
    many = int(trial.evidence["images"])
    names = {"traced": f"{SAYS}, {many} published"}
    names |= {name: f"{SAYS}, {name.rpartition('_')[2]} published" for name in _few(trial)}
    names |= {"false": "owners who claim what did not learn from their images"}
    names |= {"stopped": f"{SAYS} after {STOP:.0%} of the steps", "few_correct": "accuracy of probes of few labels"}
    return {says: trial.estimates[name] for name, says in names.items() if name in trial.estimates}


def _groups(trial: Trial) -> dict[str, list[float]]:
    known = {name: words for name, words in GROUPS.items() if f"p_{name}" in trial.evidence}
    return {words: trial.evidence[f"p_{name}"].tolist() for name, words in known.items()}


def _claim(trial: Trial) -> str:
    e, many = trial.estimates, int(trial.evidence["images"])
    fewer = "".join(f", with {name.rpartition('_')[2]} {e[name].value:.0%}" for name in _few(trial))
    hits = int(trial.evidence["false"].sum())
    says = (
        f"Of owners of {many} published images that the encoder learnt from, {e['traced'].value:.0%} show it by "
        f"{named(trial)} at {LEVEL:.0%}{fewer}; {hits or 'none'} of {len(trial.evidence['false'])} owners claim an "
        "encoder that did not learn from their images"
    )
    return f"{says}: its claims prove nothing." if wrong(trial.evidence) else f"{says}."


def _table(trials: Sequence[Trial]) -> str:
    """Every p-value as CSV."""
    rows = ((t, group, p) for t in trials for group, values in _groups(t).items() for p in values)
    return "method,group,p,claimed\n" + "".join(
        f'"{named(t)}","{group}",{p:.6g},{p <= LEVEL}\n' for t, group, p in rows
    )
