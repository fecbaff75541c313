"""What trials of attributes say: does an image's embedding tell what the task it is for does not need."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from buckler.encoders._attributes import most
from buckler.encoders._blurred import GUARDS, SAID, best
from buckler.encoders._problems import PROBLEMS, Row
from buckler.findings import Finding, NotMeasured, Rule, Severity, Verdicts, because, severity
from buckler.judging import named, resting
from buckler.report import figures
from buckler.stats import Estimate
from buckler.trial import Trial

TITLE, CELL = PROBLEMS["attributes"]
RULE = "encoders.attribute_told"
ASKED = ("rows", "train_rows", "encoder_steps")
"""What `evaluate` may be asked beside a method's own knobs, as flags."""
NAMES = {
    "light": "how light an image is, in quarters",
    "mirrored": "whether it is mirrored",
    "turned": "how often it is turned by a quarter",
    "sibling": "which of a pair of classes it shows, where the task is the pair",
}


def of_attributes(trials: Sequence[Trial], table: Mapping[str, Rule], command: str) -> tuple[Verdicts, tuple[Row, ...]]:
    """The finding, and what could not be measured."""
    missing = tuple(NotMeasured(named(t), t.reason, CELL) for t in trials if t.status != "ok")
    good = [t for t in trials if t.status == "ok"]
    if not good:
        return Verdicts((), missing), ()
    worst = max(good, key=lambda t: t.estimates[f"gain_right_{most(t)}"].low)
    return Verdicts((_finding(worst, good, table, command),), missing), (_row(worst),)


def _finding(worst: Trial, trials: Sequence[Trial], table: Mapping[str, Rule], command: str) -> Finding:
    e, name = worst.estimates, most(worst)
    effect, names = e[f"gain_right_{name}"], [n for n in NAMES if f"right_{n}" in e]
    level, above = severity(RULE, effect, table), effect.low > 0
    state = "found" if level > Severity.info and above else "clear" if level == Severity.info else "not measured"
    title = f"{NAMES[name]}: told beyond what the task tells"
    shown = {title: effect}
    for n in names:
        shown[f"{n}: told"], shown[f"{n}: usual of the task's answer"] = e[f"right_{n}"], e[f"usual_{n}"]
        shown[f"{n}: told by features of other rows"] = e[f"shuffled_{n}"]
        if f"untrained_{n}" in e:
            shown[f"{n}: told by the untrained network"] = e[f"untrained_{n}"]
        shown |= {f"{n}: told, {says}": e[f"{guard}_{n}"] for guard, says in SAID.items() if f"{guard}_{n}" in e}
    least = best(worst, name)
    left = e.get(f"gain_{least}_{name}")
    helps = left is not None and left.high < effect.low and state == "found"
    each = "; ".join(f"{NAMES[n]}, {e[f'right_{n}'].value:.0%} (usual: {e[f'usual_{n}'].value:.0%})" for n in names)
    plain = ", ".join(f"{e[f'untrained_{n}'].value:.0%}" for n in names if f"untrained_{n}" in e)
    bars = {f"{n}, {words}": e[f"{way}_{n}"] for n in names for way, words in (("right", "told"), ("usual", "usual"))}
    found = Finding(
        id="encoders/attributes",
        title=TITLE,
        state=state,
        severity=level if state == "found" else Severity.info,
        because="" if state == "not measured" else because(RULE, effect, table, of=title),
        claim=f"By {named(worst)} the features of an image tell {each}. Usual is what is commonest among images of "
        "which the task's answer is the same."
        + (f" The same network untrained tells {plain}{_untaught(e, name)}." if plain else "")
        + (" This decides nothing: there are too few rows." if state == "not measured" else ""),
        cell=CELL,
        estimates=shown,
        figures=(figures.bars(bars, axis="images of which it is told", name="attributes"),),
        remedy=_remedy(worst, name, least, helps) if state == "found" else "",
        remedy_methods=(GUARDS[least],) if helps else (),
        remedied={title: left, "change of accuracy": e[f"{least}_price"]} if helps and left is not None else {},
    )
    return resting(found, trials, worst, command, ASKED)


def _untaught(e: Mapping[str, Estimate], name: str) -> str:
    """What it means that an untrained network tells so much, where it surely is half of it."""
    most = e[f"gain_untrained_{name}"].low >= e[f"gain_right_{name}"].value / 2 > 0
    return ": most of what is told most surely is there without pre-training" if most else ""


def _remedy(trial: Trial, name: str, least: str, helps: bool) -> str:
    says = "Send what the task needs, its answers, and not the features; where features are sent, treat them as the "
    says += "image itself. "
    if not least:
        return says + "Of features that can only be asked for no guard was tried."
    left, price = trial.estimates[f"gain_{least}_{name}"], trial.estimates[f"{least}_price"]
    if not helps:
        return says + f"Guards were tried and do not surely help: with {SAID[least]}, {left.value:+.0%} is told."
    return says + (
        f"With {SAID[least]}, {left.value:+.0%} is still told beyond what is usual, by the same method told of it, and "
        f"the accuracy of a linear probe changes by {100 * price.value:+.1f} points."
    )


def _row(trial: Trial) -> Row:
    e, name = trial.estimates, most(trial)
    least = best(trial, name)
    return Row(
        "attributes",
        named(trial),
        f"told beyond the task, {name}",
        e[f"gain_right_{name}"],
        e["correct"],
        defence=SAID.get(least, ""),
        left=e.get(f"gain_{least}_{name}"),
        costs=e.get(f"{least}_price"),
    )
