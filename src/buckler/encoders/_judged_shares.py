"""What trials of shares say: is it told from an encoder alone how large a class's share of its training rows was."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import cast

from buckler.encoders._problems import Row
from buckler.findings import Cell, Finding, NotMeasured, Rule, Severity, Verdicts, because, severity
from buckler.judging import named, resting
from buckler.trial import Trial

TRAINING: Cell = ("training", "confidentiality")
RULE = "encoders.share_told"
ASKED = ("models", "train_rows")
"""What `evaluate` may be asked beside a method's own knobs, as flags."""


def of_shares(trials: Sequence[Trial], table: Mapping[str, Rule], command: str) -> tuple[Verdicts, tuple[Row, ...]]:
    """The finding, and what could not be measured; it has no row, which is that of attributes."""
    missing = tuple(NotMeasured(named(t), t.reason, TRAINING) for t in trials if t.status != "ok")
    good = [t for t in trials if t.status == "ok"]
    if not good:
        return Verdicts((), missing), ()
    worst = max(good, key=lambda t: (t.estimates["right"].low, t.estimates["right"].value))
    return Verdicts((_finding(worst, good, table, command),), missing), ()


def _finding(worst: Trial, trials: Sequence[Trial], table: Mapping[str, Rule], command: str) -> Finding:
    e, shares = worst.estimates["right"], cast("Sequence[float]", worst.params["shares"])
    chance, level = 1 / len(shares), severity(RULE, e, table)
    above = level > Severity.info and e.low > chance
    state = "found" if above else "clear" if level == Severity.info else "not measured"
    order = [worst, *(t for t in trials if t is not worst)]
    shown = {f"shares told, class {t.params['label']} at {_said(t)}": t.estimates["right"] for t in order}
    found = Finding(
        id="encoders/attributes/share",
        title="What an encoder tells of its pre-training rows as a whole",
        state=state,
        severity=level if state == "found" else Severity.info,
        because="" if state == "not measured" else because(RULE, e, table, of="shares told"),
        claim=f"With {worst.params['models']} encoders pre-trained on rows of the same kind, it is told of "
        f"{e.value:.0%} of small encoders from their features whether class {worst.params['label']} was {_said(worst)} "
        f"of the rows that they learnt from (chance: {chance:.0%}; with the shares of other encoders: "
        f"{worst.estimates['shuffled'].value:.0%})."
        + (f" This decides nothing: {e.n} encoders are too few." if state == "not measured" else ""),
        cell=TRAINING,
        estimates={**shown, "shares told, taught with those of others": worst.estimates["shuffled"]},
        remedy="If the make-up of the rows is itself a secret, balance them before pre-training; differential privacy "
        "for rows does not hide what is true of many of them."
        if state == "found"
        else "",
    )
    return resting(found, trials, worst, command, ASKED)


def _said(trial: Trial) -> str:
    return " or ".join(f"{share:.0%}" for share in cast("Sequence[float]", trial.params["shares"]))
