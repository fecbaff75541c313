"""What features tell of how an encoder was made: which traits, how surely, and what guards leave of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from buckler import stats
from buckler.encoders._blurred import GUARDS, SAID, best
from buckler.encoders._guessed import chance
from buckler.encoders._making import WAYS
from buckler.encoders._problems import PROBLEMS, Row
from buckler.findings import Finding, NotMeasured, Rule, Severity, Verdicts, because, severity
from buckler.judging import named, resting
from buckler.report import figures
from buckler.trial import Trial

TITLE, CELL = PROBLEMS["making"]
RULE = "encoders.making_told"
ASKED = ("models", "train_rows", "encoder_steps")
"""What `evaluate` may be asked beside a method's own knobs, as flags."""


def of_making(trials: Sequence[Trial], table: Mapping[str, Rule], command: str) -> tuple[Verdicts, tuple[Row, ...]]:
    """The finding, and what could not be measured."""
    missing = tuple(NotMeasured(named(t), t.reason, CELL) for t in trials if t.status != "ok")
    good = [t for t in trials if t.status == "ok"]
    if not good:
        return Verdicts((), missing), ()
    worst = max(good, key=lambda t: t.estimates["beyond"].low)
    return Verdicts((_finding(worst, good, table, command),), missing), (_row(worst),)


def _finding(worst: Trial, trials: Sequence[Trial], table: Mapping[str, Rule], command: str) -> Finding:
    e, traits = worst.estimates, [t for t in WAYS if f"right_{t}" in worst.estimates]
    level, surely = severity(RULE, e["beyond"], table), _surely(worst, traits)
    undecided = level > Severity.info and (e["beyond"].low <= 0 or not surely)
    state = "not measured" if undecided else "found" if level > Severity.info else "clear"
    shown = {
        "traits told beyond chance": e["beyond"],
        "traits told": e["told"],
        "traits told by a metamodel of shuffled traits": e["shuffled_told"],
        **{f"traits told, {says}": e[f"{guard}_told"] for guard, says in SAID.items() if f"{guard}_told" in e},
    }
    least = best(worst, "beyond")
    helps = bool(least) and e[f"{least}_beyond"].high < e["beyond"].low and state == "found"
    remedy = "Do not count on the making of an encoder to be secret: what helps is to limit what one account may ask. "
    if least and not helps:
        says = f"Guards were tried and hide little: with {SAID[least]}, {e[f'{least}_told'].value:.0%} of the traits "
        remedy += f"{says}are told."
    elif least:
        remedy += f"{SAID[least].capitalize()} leaves {e[f'{least}_told'].value:.0%} told by a thief who knows of it."
    found = Finding(
        id="encoders/making",
        title=TITLE,
        state=state,
        severity=level if state == "found" else Severity.info,
        because="" if undecided else because(RULE, e["beyond"], table, of="traits told beyond chance"),
        claim=_claim(worst, traits, surely)
        + (f" This decides nothing: {e['beyond'].n} encoders are too few." if undecided else ""),
        cell=CELL,
        estimates=shown,
        figures=(
            figures.bars(
                {f"{t} (chance {chance(worst.evidence, t):.0%})": e[f"right_{t}"] for t in traits},
                axis="encoders of which it is told",
                name="making",
            ),
        ),
        remedy=remedy if state == "found" else "",
        remedy_methods=(GUARDS[least],) if helps else (),
        remedied={"traits told": e[f"{least}_told"]} if helps else {},
    )
    return resting(found, trials, worst, command, ASKED)


def _surely(trial: Trial, traits: Sequence[str]) -> list[str]:
    """The traits that are told more often than by chance, at the level of one estimate shared between all."""
    level = 1 - (1 - stats.LEVEL) / len(traits)
    share = {t: stats.share(trial.evidence[f"right_{t}"], t, level) for t in traits}
    return [t for t in traits if share[t].low > chance(trial.evidence, t)]


def _claim(trial: Trial, traits: Sequence[str], surely: Sequence[str]) -> str:
    e = trial.estimates
    each = [f"{t} ({e[f'right_{t}'].value:.0%}, chance {chance(trial.evidence, t):.0%})" for t in surely]
    rest = ", ".join(t for t in traits if t not in surely)
    words = f"With {trial.threat.within}, {e['told'].value:.0%} of the traits of unknown small encoders are told: "
    words += f"surely beyond chance {', '.join(each) or 'none'}{f'; not {rest}' if rest and surely else ''}. How many "
    words += "features there are is seen in any answer."
    said = "; ".join(_guess(trial, t) for t in surely if f"guess_{t}" in trial.evidence)
    return words + (f" Of the encoder itself, which is unlike any learnt from, it guesses: {said}." if said else "")


def _guess(trial: Trial, trait: str) -> str:
    """What is guessed of the subject's encoder, and whether it is so, where that is known."""
    guess = trial.evidence[f"guess_{trait}"]
    leading = int(guess.argmax())
    words = f"{trait} {WAYS[trait][leading]} ({float(guess.max()):.0%} sure)"
    if f"seen_{trait}" not in trial.evidence:
        return words
    return f"{words}, which is {'so' if int(trial.evidence[f'seen_{trait}'][0]) == leading else 'wrong'}"


def _row(trial: Trial) -> Row:
    e, least = trial.estimates, best(trial, "beyond")
    return Row(
        "making",
        named(trial),
        "traits told beyond chance",
        e["beyond"],
        defence=SAID.get(least, ""),
        left=e.get(f"{least}_beyond"),
    )
