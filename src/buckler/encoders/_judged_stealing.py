"""What it costs to copy an encoder through its features, and what guards on the features change about it.

A finding rests on the copy whose features are worth the most where labels are few. A guard is credited with what the
best of its thieves is left with: the one it was tried against, and those who expect it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from buckler.encoders._guarded import ADAPTIVE, HARMLESS
from buckler.encoders._judged_watched import of_watching
from buckler.encoders._problems import PROBLEMS, Row
from buckler.encoders._stolen import CONTROLS
from buckler.encoders._watched import CALM, EXPECTING
from buckler.findings import Figure, Finding, NotMeasured, Rule, Severity, Verdicts, because, severity
from buckler.judging import named, resting
from buckler.report import figures
from buckler.stats import Estimate
from buckler.trial import Trial

RULE = "encoders.stealing"
TITLE, CELL = PROBLEMS["stealing"]
ASKED = ("rows", "train_rows", "encoder_steps", "queries", "attack")
"""What `evaluate` may be asked beside a method's own knobs, as flags."""
SAYS = "accuracy above the copy over that above the encoder, few labels"
SHOWN = {
    "ratio_copy_few": SAYS,
    "ratio_copy": "the same by linear probes of all labels",
    "few_accuracy": "accuracy of probes of few labels above the encoder",
    "copy_few_accuracy": "the same above the copy",
    **{f"{name}_few_accuracy": f"the same above one {words}" for name, words in CONTROLS.items()},
    "above_alone": f"what the copy has above one {CONTROLS['alone']}",
    "recognised": "rows that the copy's features tell from all others by the encoder's",
    "cosine": "cosine of the copy's features to the encoder's, less their means",
}


def of_stealing(trials: Sequence[Trial], table: Mapping[str, Rule], command: str) -> tuple[Verdicts, tuple[Row, ...]]:
    """The findings on copies, guards and detectors of thieves, what could not be measured, and the problem's row."""
    good = [t for t in trials if t.status == "ok"]
    thefts, guards, watched = ([t for t in good if t.kind == kind] for kind in ("extract", "guard", "watch"))
    missing = tuple(NotMeasured(named(t), t.reason, CELL) for t in trials if t.status != "ok")
    findings, rows = list[Finding](), tuple[Row, ...]()
    if thefts:
        found, row = _stealing(thefts, [*guards, *watched], table, command)
        findings.append(found)
        rows = (row,)
    if guards:
        findings.append(_guards(guards, command))
    findings += of_watching(watched, command)
    return Verdicts(tuple(findings), missing), rows


def _stealing(
    thefts: Sequence[Trial], guards: Sequence[Trial], table: Mapping[str, Rule], command: str
) -> tuple[Finding, Row]:
    worst = max(thefts, key=lambda t: t.estimates["ratio_copy_few"].value)
    effect = worst.estimates["ratio_copy_few"]
    level = severity(RULE, effect, table)
    undecided = level > Severity.info and worst.estimates["above_alone"].low <= 0
    state = "not measured" if undecided else "found" if level > Severity.info else "clear"
    best = _best(guards)
    remedy = "Limit what one account may ask, and mark the encoder so that a copy can be recognised."
    says = "" if best is None else f"{_did([best])} "
    helped = best is not None and _left(best)[1].high < 0 and state == "found"
    found = Finding(
        id="encoders/stealing",
        title="What it costs to copy the encoder through its features",
        state=state,
        severity=level if state == "found" else Severity.info,
        because="" if undecided else because(RULE, effect, table, of="the accuracy downstream"),
        claim=_claim(worst)
        + (" This decides nothing: the copy is not surely worth more than the latter." if undecided else ""),
        cell=CELL,
        estimates={title: worst.estimates[name] for name, title in SHOWN.items() if name in worst.estimates}
        | {
            f"{SAYS.partition(',')[0]}, {name.removeprefix('ratio_copy_')}": estimate
            for name, estimate in worst.estimates.items()
            if name in ("ratio_copy_pairs", "ratio_copy_digits")
        },
        figures=_curves(thefts),
        remedy=f"{says}{remedy}" if state == "found" else "",
        remedy_methods=(best.method,) if best is not None and helped else (),
        remedied={SAYS: _left(best)[0]} if best is not None and helped else {},
        tables={"stolen-encoders.csv": _table(thefts)},
    )
    row = Row(
        "stealing",
        named(worst).removeprefix("encoders/"),
        SAYS,
        effect,
        defence="" if best is None else named(best).removeprefix("encoders/"),
        left=None if best is None else _left(best)[0],
        costs=None if best is None else _price(best),
    )
    return resting(found, thefts, worst, command, ASKED), row


def _claim(trial: Trial) -> str:
    e, asked = trial.estimates, int(trial.evidence["asked"][-1])
    paid = float(trial.evidence["share_paid"][-1])
    right = {name: f"{e[f'{name}few_accuracy'].value:.1%}" for name in ("", "copy_", *(f"{one}_" for one in CONTROLS))}
    return (
        f"With {asked} rows asked and {paid:.1%} of the passes of pre-training, {named(trial)} makes a copy above "
        f"which probes of few labels are right on {right['copy_']} of test rows (the encoder: {right['']}), and linear "
        f"probes of all labels on {e['copy_accuracy'].value:.1%} ({e['accuracy'].value:.1%}). Without asking, few "
        f"labels reach {right['untrained_']} above an untrained network, {right['full_']} above one pre-trained in "
        f"full on the thief's rows, and {right['alone_']} above one that was pre-trained on them at the copy's cost."
    )


def _points(trial: Trial) -> tuple[list[float], list[Estimate]]:
    budgets = trial.evidence["budget"].tolist()
    return trial.evidence["share_paid"].tolist(), [trial.estimates[f"ratio_copy_{budget}_few"] for budget in budgets]


def _curves(thefts: Sequence[Trial]) -> tuple[Figure, ...]:
    """What share of the encoder's accuracy is had for what share of its pre-training, by thieves and without asking."""
    curves = {named(t).removeprefix("encoders/"): _points(t) for t in thefts}
    first = thefts[0]
    alone = [first.estimates[f"ratio_{name}_few"] for name in ("alone", "full")]
    curves["pre-trained, not asking"] = ([float(first.evidence["share_paid"][-1]), 1.0], alone)
    axis = "share of the passes of pre-training"
    return (figures.exchange(curves, axis=axis, of="accuracy over the encoder's", name="stolen-encoders"),)


def _table(thefts: Sequence[Trial]) -> str:
    """Every point of every curve as CSV."""
    text = "method,rows_asked,passes,share_of_pretraining,accuracy_ratio_few,low,high,accuracy_ratio\n"
    for t in thefts:
        shares, few = _points(t)
        for n, (share, ratio) in enumerate(zip(shares, few, strict=True)):
            budget, asked, paid = (t.evidence[name].tolist()[n] for name in ("budget", "asked", "passes"))
            text += (
                f'"{named(t)}",{asked},{paid:.0f},{share:.6g},{ratio.value:.6g},{ratio.low:.6g},{ratio.high:.6g},'
                f"{t.estimates[f'ratio_copy_{budget}'].value:.6g}\n"
            )
    return text


# ------------------------------------------------------------------------------------------------ guards


def _left(guard: Trial) -> tuple[Estimate, Estimate, str]:
    """What the best thief has of the encoder's accuracy, the change that this is, and who that thief is."""
    e, thieves = guard.estimates, EXPECTING if guard.kind == "watch" else {"naive": "who expects nothing", **ADAPTIVE}
    each = [(e[f"ratio_{name}_few"], e[f"change_{name}"], words) for name, words in thieves.items()]
    return max(each, key=lambda thief: thief[0].value)


def _price(guard: Trial) -> Estimate:
    """The change of what honest users' probes are right on: where accounts are watched, of those who pay the most."""
    e = guard.estimates
    kinds = ("change_user_task", "change_user_whole") if guard.kind == "watch" else ("change_guarded_few",)
    return min((e[kind] for kind in kinds), key=lambda change: change.value)


def _harms(guard: Trial) -> bool:
    harm = guard.kind == "watch" and _price(guard).high < 0
    return harm or any(check.name in (HARMLESS, CALM) and not check.passed for check in guard.checks)


def _best(guards: Sequence[Trial]) -> Trial | None:
    """The guard that leaves the least, of those that cost no honest user anything if there are any."""
    kind = [guard for guard in guards if not _harms(guard)] or guards
    return min(kind, key=lambda guard: _left(guard)[0].value) if kind else None


def _did(guards: Sequence[Trial]) -> str:
    each = [
        f"with {named(guard)}, {_left(guard)[0].value:.1%} by one {_left(guard)[2]} (without it "
        f"{guard.estimates['ratio_undefended_few'].value:.1%}; the probes of honest users change by "
        f"{100 * _price(guard).value:+.1f} points{_whose(guard)})"
        for guard in guards
    ]
    return f"Of the encoder's accuracy with few labels the best of the thieves who were tried has: {'; '.join(each)}."


def _whose(guard: Trial) -> str:
    if guard.kind != "watch":
        return ""
    return f" where they have a use for all classes, by {100 * guard.estimates['change_user_task'].value:+.1f} for two"


def _guards(guards: Sequence[Trial], command: str) -> Finding:
    shown = min(guards, key=lambda guard: _left(guard)[0].value)
    e, bars = shown.estimates, dict[str, Estimate]()
    for guard in guards:
        name = named(guard).removeprefix("encoders/")
        bars[f"{name}: honest user"] = guard.estimates["guarded_few_accuracy"]
        for thief, words in {"naive": "thief", **ADAPTIVE}.items():
            bars[f"{name}: {words.replace('who ', 'thief who ')}"] = guard.estimates[f"{thief}_few_accuracy"]
    bars["no guard: honest user"] = e["few_accuracy"]
    bars["no guard: thief"] = e["undefended_few_accuracy"]
    found = Finding(
        id="encoders/stealing/guards",
        title="Guards on features tried against a thief",
        state="found",
        claim=_did(guards),
        cell=CELL,
        estimates={
            f"{SAYS}, best thief": _left(shown)[0],
            "the same without the guard": e["ratio_undefended_few"],
            "accuracy of honest users, few labels": e["guarded_few_accuracy"],
            "the same without the guard, few labels": e["few_accuracy"],
            "accuracy of honest users, linear probe": e["guarded_accuracy"],
            "the same without the guard, linear probe": e["accuracy"],
        },
        figures=(figures.bars(bars, axis="accuracy of probes with few labels", name="guarded-features"),),
    )
    return resting(found, guards, shown, command, ASKED)
