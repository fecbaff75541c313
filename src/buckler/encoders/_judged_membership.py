"""Which images an encoder gives away by its features: the strongest inference, and what early stopping leaves of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from buckler.encoders._inferred import CONTROL, STOPS
from buckler.encoders._judged_private import USELESS, of_private
from buckler.encoders._problems import PROBLEMS, Row
from buckler.findings import Figure, Finding, NotMeasured, Rule, Severity, Verdicts, because, severity
from buckler.judging import named, resting
from buckler.report import figures
from buckler.stats import Estimate
from buckler.trial import Trial

RULE, AUC = "encoders.membership", "area under the curve"
CHANCE = 0.5
ASKED = ("rows", "train_rows", "encoder_steps")
"""What `evaluate` may be asked beside a method's own knobs, as flags."""
SHOWN = {
    "auc": AUC,
    "found_at_one_percent": "members found at 1% false alarms",
    "balanced_accuracy": "balanced accuracy",
    "control_auc": "area under the curve on an encoder that saw neither side",
    "few_correct": "accuracy of probes of few labels",
    **{
        f"stopped_{stop:g}_{key}": f"{says} after {stop:.0%} of the steps"
        for stop in STOPS
        for key, says in {"auc": AUC, "few_correct": "accuracy of probes of few labels"}.items()
    },
}


def of_membership(trials: Sequence[Trial], table: Mapping[str, Rule], command: str) -> tuple[Verdicts, tuple[Row, ...]]:
    """One finding that rests on the strongest inference, one on private pre-training, and what could not be measured.

    Of the defences private pre-training stands in the table where it was tried, as it alone promises anything, unless
    it taught nothing and another was tried."""
    cell = PROBLEMS["membership"][1]
    private, promised = of_private([t for t in trials if t.kind == "pretrain"], command)
    trials = [t for t in trials if t.kind != "pretrain"]
    missing = (*(NotMeasured(named(t), t.reason, cell) for t in trials if t.status != "ok"), *private.not_measured)
    good = [t for t in trials if t.status == "ok"]
    if not good:
        return Verdicts(private.findings, missing), () if promised is None else (promised,)
    worst = max(good, key=lambda t: t.estimates["auc"].low)
    effect = worst.estimates["auc"]
    level = severity(RULE, effect, table)
    undecided = level > Severity.info and effect.low <= CHANCE
    state = "not measured" if undecided else "found" if level > Severity.info else "clear"
    stop = min(_stops(worst), key=lambda name: worst.estimates[f"{name}auc"].value, default="")
    left = worst.estimates[f"{stop}auc"] if stop else None
    helped = left is not None and left.high < effect.low and state == "found"
    found = Finding(
        id="encoders/membership",
        title="Which images the encoder gives away",
        state=state,
        severity=level if state == "found" else Severity.info,
        because="" if undecided else because(RULE, effect, table, of=AUC),
        claim=_claim(worst) + (" This decides nothing: it is not surely above chance." if undecided else ""),
        cell=cell,
        estimates={says: worst.estimates[name] for name, says in SHOWN.items() if name in worst.estimates},
        figures=_pictures(good, worst),
        remedy=(_stopping(worst, stop) if stop else "")
        + "Pre-train on more images, and less long, so that members are not told from others."
        if state == "found"
        else "",
        remedied={AUC: left} if helped and left is not None else {},
    )
    row = Row(
        "membership",
        named(worst).removeprefix("encoders/"),
        AUC,
        effect,
        before=worst.estimates["few_correct"],
        defence=f"stopping after {_share(stop)} of the steps" if stop else "",
        left=left,
        costs=worst.estimates[f"{stop}change"] if stop else None,
    )
    if promised is not None and not (stop and promised.defence.endswith(USELESS)):
        same = row.attack.startswith(promised.attack)
        defence = promised.defence if same else f"{promised.defence}, against {promised.attack}"
        row = row._replace(defence=defence, left=promised.left, costs=promised.costs)
    return Verdicts((resting(found, good, worst, command, ASKED), *private.findings), missing), (row,)


def _stops(trial: Trial) -> list[str]:
    """How the estimates of encoders that were stopped early begin."""
    names = (f"stopped_{stop:g}_" for stop in STOPS)
    return [name for name in names if f"{name}auc" in trial.estimates]


def _share(stop: str) -> str:
    return f"{float(stop.split('_')[1]):.0%}"


def _stopping(trial: Trial, stop: str) -> str:
    left, lost = trial.estimates[f"{stop}auc"], trial.estimates[f"{stop}change"]
    return (
        f"Stopping after {_share(stop)} of the steps leaves an {AUC} of {left.value:.2f} to the same attack, whose own "
        f"encoders stop as early, for {100 * lost.value:+.1f} points of accuracy downstream. "
    )


def _claim(trial: Trial) -> str:
    e = trial.estimates
    doubt = next(check.says for check in trial.checks if check.name == CONTROL)
    return (
        f"By nothing but features, {named(trial)} ranks an image that the encoder learnt from above another with "
        f"probability {e['auc'].value:.2f} (chance: 0.5), and finds {e['found_at_one_percent'].value:.1%} of those "
        f"learnt from where 1% of others are flagged. {doubt}"
    )


def _pictures(good: Sequence[Trial], worst: Trial) -> tuple[Figure, ...]:
    curves = {named(t).removeprefix("encoders/"): t.evidence["ranked"] for t in good}
    bars: dict[str, Estimate] = {label: t.estimates["auc"] for label, t in zip(curves, good, strict=True)}
    bars |= {f"stopped after {_share(stop)} of the steps": worst.estimates[f"{stop}auc"] for stop in _stops(worst)}
    bars["an encoder that saw neither side"] = worst.estimates["control_auc"]
    return (
        figures.roc(curves, name="encoder-members-roc"),
        figures.bars(bars, axis=AUC, name="encoder-members"),
    )
