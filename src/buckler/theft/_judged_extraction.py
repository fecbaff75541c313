"""What it costs to copy the model through its answers, and what guards change about it.

A finding rests on the copy that agrees most, whoever made it and whatever was revealed. A guard is credited with what
the best thief is left with: one who learns from guarded scores, or one who asks for nothing but labels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from buckler.findings import Cell, Figure, Finding, NotMeasured, Rule, Severity, Verdicts, because, severity
from buckler.judging import named, resting
from buckler.report import figures
from buckler.stats import Estimate
from buckler.theft._guarded import HARMLESS
from buckler.trial import Trial

RULE = "theft.agreement"
QUERIES: Cell = ("queries", "confidentiality")
ASKED = ("rows", "queries", "reveals", "pool", "attack", "train_rows")
"""What `evaluate` may be asked beside a method's own knobs, as flags."""
MOST = 5
"""How many curves a figure holds."""
SHOWN = {
    "fidelity": "rows on which the copy agrees with the model",
    "accuracy": "accuracy of the copy",
    "victim_accuracy": "accuracy of the model",
    "accuracy_ratio": "accuracy of the copy over the model's",
    "fidelity_alone": "agreement of a network taught with true labels",
    "accuracy_alone": "accuracy of a network taught with true labels",
    "control_fidelity": "agreement of a copy of answers to other rows",
    "transferred": "right answers turned by examples made on the copy",
    "alone_transferred": "right answers turned by examples made without the model",
    "noise_transferred": "right answers turned by noise of that size",
}
POOLS = {
    "test": "inputs of the same distribution",
    "train": "the inputs that the model learnt from",
    "noise": "noise",
}


def of_extraction(trials: Sequence[Trial], table: Mapping[str, Rule], command: str) -> Verdicts:
    """The finding on extraction, that on guards, and what could not be measured."""
    good = [t for t in trials if t.status == "ok"]
    thefts, guards = ([t for t in good if t.kind == kind] for kind in ("extract", "guard"))
    findings: list[Finding] = []
    if thefts:
        findings.append(_extraction(thefts, guards, table, command))
    if guards:
        findings.append(_guards(guards, command))
    missing = [NotMeasured(named(t), t.reason, QUERIES) for t in trials if t.status != "ok"]
    return Verdicts(tuple(findings), tuple(missing))


def _extraction(thefts: Sequence[Trial], guards: Sequence[Trial], table: Mapping[str, Rule], command: str) -> Finding:
    worst = max(thefts, key=lambda t: t.estimates["fidelity"].value)
    effect, beyond = worst.estimates["fidelity"], worst.estimates["fidelity_above_control"]
    level = severity(RULE, effect, table)
    undecided = level > Severity.info and beyond.low <= 0
    state = "not measured" if undecided else "found" if level > Severity.info else "clear"
    remedy, methods, remedied = _remedy(guards)
    found = Finding(
        id="theft/extraction",
        title="What it costs to copy the model through its answers",
        state=state,
        severity=level if state == "found" else Severity.info,
        because="" if undecided else because(RULE, effect, table, of="agreement"),
        claim=_claim(worst)
        + (f" This decides nothing: {effect.n} rows are too few to tell it from chance." if undecided else ""),
        cell=QUERIES,
        estimates={title: worst.estimates[name] for name, title in SHOWN.items() if name in worst.estimates},
        figures=_curves(thefts),
        remedy=remedy if state == "found" else "",
        remedy_methods=methods if state == "found" else (),
        remedied=remedied if state == "found" else {},
        tables={"stolen.csv": _table(thefts)},
    )
    return resting(found, thefts, worst, command, ASKED)


def _claim(trial: Trial) -> str:
    e, asked = trial.estimates, int(trial.evidence["asked"][-1])
    words = [
        f"With {asked} queries for {trial.params['reveals']} on {POOLS[str(trial.params['pool'])]}, {named(trial)} "
        f"makes a copy that agrees with the model on {e['fidelity'].value:.1%} of test rows and answers "
        f"{e['accuracy'].value:.1%} rightly (the model: {e['victim_accuracy'].value:.1%})."
    ]
    if "fidelity_alone" in e:
        words.append(
            f"A network taught with the true labels of {int(trial.evidence['taught'][0])} inputs agrees on "
            f"{e['fidelity_alone'].value:.1%}."
        )
    if "transferred" in e:
        words.append(
            f"Adversarial examples made on the copy turn {e['transferred'].value:.1%} of the model's right answers "
            f"(noise of that size: {e['noise_transferred'].value:.1%})."
        )
    return " ".join(words)


def _label(trial: Trial) -> str:
    """A curve's name: the method with its own knobs, and what it was asked that is not usual."""
    more = [str(word) for word in (trial.params["reveals"], trial.params["pool"]) if word not in ("scores", "test")]
    return " ".join([named(trial).removeprefix("theft/"), *more])


def _curve(trial: Trial, name: str) -> tuple[list[float], list[Estimate]]:
    budgets, asked = trial.evidence["budget"].tolist(), trial.evidence["asked"].tolist()
    return [float(many) for many in asked], [trial.estimates[f"{name}_{budget}"] for budget in budgets]


def _curves(thefts: Sequence[Trial]) -> tuple[Figure, ...]:
    """The best copies of those that were made with several budgets, if any were; `stolen.csv` has them all."""
    several = [t for t in thefts if len(t.evidence["asked"]) > 1] or thefts
    best = sorted(several, key=lambda t: t.estimates["fidelity"].value, reverse=True)[:MOST]
    words = {"fidelity": "agreement with the model", "accuracy": "accuracy of the copy"}
    return tuple(
        figures.exchange({_label(t): _curve(t, name) for t in best}, axis="queries", of=of, name=f"stolen-{name}")
        for name, of in words.items()
    )


def _table(thefts: Sequence[Trial]) -> str:
    """Every point of every curve as CSV."""
    lines = ["method,reveals,pool,queries,agreement,low,high,accuracy\n"]
    for trial in thefts:
        (asked, agreed), (_, right) = _curve(trial, "fidelity"), _curve(trial, "accuracy")
        start = f'"{named(trial)}",{trial.params["reveals"]},{trial.params["pool"]}'
        lines += [
            f"{start},{many:.0f},{a.value:.6g},{a.low:.6g},{a.high:.6g},{r.value:.6g}\n"
            for many, a, r in zip(asked, agreed, right, strict=True)
        ]
    return "".join(lines)


# ------------------------------------------------------------------------------------------------ guards


def _left(guard: Trial) -> tuple[Estimate, Estimate, str]:
    """What the better of the two thieves is left with, the change that this is, and what that thief learns from."""
    e = guard.estimates
    naive = e["fidelity"], e["fidelity_change"], "scores"
    adaptive = e["fidelity_adaptive"], e["adaptive_fidelity_change"], "labels alone"
    return max(naive, adaptive, key=lambda thief: thief[0].value)


def _did(guards: Sequence[Trial]) -> str:
    each = [
        f"with {named(guard)}, {_left(guard)[0].value:.1%} by {_left(guard)[2]}, where a thief on scores without it "
        f"agrees on {guard.estimates['fidelity_undefended'].value:.1%} "
        f"(accuracy {100 * guard.estimates['accuracy_change'].value:+.1f} points)"
        for guard in guards
    ]
    return f"Of two thieves, one on scores and one on labels alone, the better agrees on: {'; '.join(each)}."


def _harms(guard: Trial) -> bool:
    return any(check.name == HARMLESS and not check.passed for check in guard.checks)


def _remedy(guards: Sequence[Trial]) -> tuple[str, tuple[str, ...], dict[str, Estimate]]:
    """What was tried and helps against the better thief; else what was tried, and what is left to do."""
    limits = (
        "Limit what one account may ask, reveal labels where scores are not needed, and mark the model so that a copy "
        "can be recognised."
    )
    helped = [g for g in guards if _left(g)[1].high < 0 and not _harms(g)]
    if helped:
        best = min(helped, key=lambda g: _left(g)[0].value)
        left, change, _ = _left(best)
        return f"{_did([best])} {limits}", (best.method,), {"agreement": left, "change of agreement": change}
    if guards:
        names = ", ".join(dict.fromkeys(named(g) for g in guards))
        return f"No guard that was tried held off a thief who expects it, without harm: {names}. {limits}", (), {}
    return limits, ("theft/rounding", "theft/prediction_poisoning"), {}


def _guards(guards: Sequence[Trial], command: str) -> Finding:
    shown = min(guards, key=lambda g: _left(g)[0].value)
    e, bars = shown.estimates, dict[str, Estimate]()
    for guard in guards:
        name = named(guard).removeprefix("theft/")
        bars[f"{name}: scores"] = guard.estimates["fidelity"]
        bars[f"{name}: labels"] = guard.estimates["fidelity_adaptive"]
        bars[f"without {name}: scores"] = guard.estimates["fidelity_undefended"]
    found = Finding(
        id="theft/guards",
        title="Guards tried against a thief",
        state="found",
        claim=_did(guards),
        cell=QUERIES,
        estimates={
            "agreement of the better thief": _left(shown)[0],
            "agreement of a thief on scores without the guard": e["fidelity_undefended"],
            "accuracy": e["guarded_accuracy"],
            "accuracy without the guard": e["unguarded_accuracy"],
            "scores moved, l1": e["scores_moved"],
            "Brier score": e["brier"],
            "Brier score without the guard": e["unguarded_brier"],
        },
        figures=(figures.bars(bars, axis="agreement of the copy with the model", name="guarded"),),
    )
    return resting(found, guards, shown, command, ASKED)
