"""What trials of guesses say: a hidden column of rows that were learnt from, and a class's share in the training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import cast

from buckler.findings import Cell, Finding, NotMeasured, Rule, Severity, State, Verdicts, because, severity
from buckler.judging import resting
from buckler.report import figures
from buckler.stats import Estimate
from buckler.trial import Trial

ASKED = ("rows", "models", "train_rows", "training_epochs")
MODEL: Cell = ("queries", "confidentiality")
TRAINING: Cell = ("training", "confidentiality")


def of_guesses(trials: Sequence[Trial], table: Mapping[str, Rule], command: str) -> Verdicts:
    """A finding of hidden columns and one of shares, and what could not be measured."""
    missing = [
        NotMeasured(t.method, t.reason, TRAINING if "shares" in t.params else MODEL) for t in trials if t.status != "ok"
    ]
    good = [t for t in trials if t.status == "ok"]
    columns, shares = [t for t in good if "gain" in t.estimates], [t for t in good if "gain" not in t.estimates]
    findings = [_of_columns(columns, table, command)] if columns else []
    findings += [_of_shares(shares, table, command)] if shares else []
    return Verdicts(tuple(findings), tuple(missing))


def _of_columns(trials: Sequence[Trial], table: Mapping[str, Rule], command: str) -> Finding:
    """Judged by what is told beyond a model that learnt from other rows: what both tell is how rows are in general."""
    worst = max(trials, key=lambda t: (t.estimates[_leak(t)].low, t.estimates[_leak(t)].value))
    e, rule, leak = worst.estimates, "privacy.attribute_told", _leak(worst)
    state, level = state_of(e[leak].low > 0, severity(rule, e[leak], table))
    names = {
        "gain": "hidden values told beyond imputation",
        "right": "hidden values told",
        "imputed": "hidden values imputed, without the model",
        "leak": "hidden values told beyond a model that learnt from other rows",
        "outside_right": "hidden values told of rows not learnt from",
        "outside_imputed": "hidden values imputed of rows not learnt from",
    }
    columns = ", ".join(str(int(column)) for column in worst.evidence["columns"])
    many = len(worst.evidence["columns"])
    found = Finding(
        id="privacy/attributes",
        title="What the model tells of a hidden column",
        state=state,
        severity=level,
        because="" if state == "not measured" else because(rule, e[leak], table, of=names[leak]),
        claim=f"Of rows that the model learnt from, with {'column' if many == 1 else 'columns'} {columns} hidden, "
        f"{e['right'].value:.1%} of the values are told by the model's answers, and {e['imputed'].value:.1%} by the "
        "other columns and the label alone"
        + (
            f"; a model that learnt from other rows tells {e['control_right'].value:.1%}"
            if "control_right" in e
            else ""
        )
        + "."
        + (f" This decides nothing: {e['gain'].n} rows are too few." if state == "not measured" else "")
        + (
            " What is told beyond imputation is how such rows are in general: it is no leak of these."
            if state == "clear" and leak != "gain" and e["gain"].low > 0
            else ""
        ),
        cell=MODEL,
        estimates={names[leak]: e[leak], **{title: e[key] for key, title in names.items() if key in e}},
        figures=(
            figures.bars(
                {
                    "by the model": e["right"],
                    "by imputation": e["imputed"],
                    "not learnt from, by the model": e["outside_right"],
                    "not learnt from, by imputation": e["outside_imputed"],
                },
                axis="hidden values told",
                name="attributes",
            ),
        ),
        remedy="Leave the column out of training if the task does not need it; train with differential privacy, or "
        "less long, so that single rows are not answered better for having been learnt; answer with labels alone."
        if state == "found"
        else "",
    )
    return resting(found, trials, worst, command, ASKED)


def _leak(trial: Trial) -> str:
    """The estimate of what is told for having learnt the rows; without a control, of all that the model adds."""
    return "leak" if "leak" in trial.estimates else "gain"


def _of_shares(trials: Sequence[Trial], table: Mapping[str, Rule], command: str) -> Finding:
    worst = max(trials, key=lambda t: (t.estimates["right"].low, t.estimates["right"].value))
    effect, rule = worst.estimates["right"], "privacy.share_told"
    shares = cast("Sequence[float]", worst.params["shares"])
    chance = 1 / len(shares)
    state, level = state_of(effect.low > chance, severity(rule, effect, table))
    said = _in_words(worst)
    name = "shares told"
    found = Finding(
        id="privacy/property",
        title="What the model tells of its training data as a whole",
        state=state,
        severity=level,
        because="" if state == "not measured" else because(rule, effect, table, of=name),
        claim=f"With {worst.params['models']} models trained on rows of the same kind, it is told of "
        f"{effect.value:.0%} of models from their answers whether class {worst.params['label']} was {said} of the rows "
        f"that they learnt from (chance: {chance:.0%})."
        + (f" This decides nothing: {effect.n} models are too few." if state == "not measured" else ""),
        cell=TRAINING,
        estimates=_named(trials, name, worst),
        remedy="If the make-up of the data is itself a secret, balance it before training, or answer with labels "
        "alone; differential privacy for rows does not hide what is true of many of them."
        if state == "found"
        else "",
    )
    return resting(found, trials, worst, command, ASKED)


def _named(trials: Sequence[Trial], name: str, worst: Trial) -> dict[str, Estimate]:
    """What each trial found, the worst first, named by what it asked."""
    order = [worst, *(t for t in trials if t is not worst)]
    return {f"{name}, class {t.params['label']} at {_in_words(t)}": t.estimates["right"] for t in order}


def _in_words(trial: Trial) -> str:
    return " or ".join(f"{share:.0%}" for share in cast("Sequence[float]", trial.params["shares"]))


def state_of(above: bool, level: Severity) -> tuple[State, Severity]:
    """Found where it is surely above chance, clear where nothing is grave, else undecided."""
    if level > Severity.info and above:
        return "found", level
    return ("not measured" if level > Severity.info else "clear"), Severity.info
