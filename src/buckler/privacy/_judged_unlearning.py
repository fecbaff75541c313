"""What trials of forgetting say: whether rows that were to be forgotten are, and what that costs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from buckler.findings import Cell, Finding, NotMeasured, Rule, Severity, Verdicts
from buckler.judging import changed, resting, said
from buckler.privacy._unlearning import EACH, GONE
from buckler.trial import Trial

TRAINING: Cell = ("training", "confidentiality")
ASKED = ("rows", "models", "train_rows", "training_epochs")
EACH_ROW = {"before_each_auc": "row by row before", "each_auc": "row by row after"}


def of_unlearning(trials: Sequence[Trial], table: Mapping[str, Rule], command: str) -> Verdicts:
    """One finding of all that was tried: high where rows that were to be forgotten still show, else for information."""
    del table
    missing = tuple(NotMeasured(_named(t), t.reason, TRAINING) for t in trials if t.status != "ok")
    good = sorted((t for t in trials if t.status == "ok"), key=_left, reverse=True)
    return Verdicts((_finding(good, command),) if good else (), missing)


def _finding(trials: Sequence[Trial], command: str) -> Finding:
    worst = trials[0]
    e, kept = worst.estimates, [t for t in trials if not _gone(t)]
    found = Finding(
        id="privacy/unlearning",
        title="Whether rows that are to be forgotten are",
        state="found",
        severity=Severity.high if kept else Severity.info,
        because="Rows that were to be forgotten are told from rows never seen." if kept else "",
        claim=" ".join(map(_did, trials)),
        cell=TRAINING,
        estimates={
            "area under the curve, forgotten rows before": e["before_auc"],
            "area under the curve, forgotten rows after": e["auc"],
            "area under the curve, by what changed": e["change_auc"],
            **{f"area under the curve, {said}": e[name] for name, said in EACH_ROW.items() if name in e},
            "rows answered otherwise than by training without them": e["different"],
            "accuracy": e["accuracy"],
            "accuracy, plain training on the same rows": e["control_accuracy"],
            "accuracy lost": e["accuracy_lost"],
            "accuracy on rows that stay": e["kept_accuracy"],
            "accuracy on rows that stay, trained without the others": e["anew_kept_accuracy"],
        },
        remedy="Train again without the rows." if kept else "",
    )
    return resting(found, trials, worst, command, ASKED)


def _left(trial: Trial) -> float:
    """The most that surely shows, on average or row by row."""
    return max(trial.estimates[name].low for name in ("auc", "each_auc") if name in trial.estimates)


def _gone(trial: Trial) -> bool:
    return all(check.passed for check in trial.checks if check.name in (GONE, EACH))


def _named(trial: Trial) -> str:
    knobs = ", ".join(f"{name} {said(value)}".replace("_", " ") for name, value in changed(trial).items())
    name = trial.method.rpartition("/")[2].replace("_", " ")
    return f"{name} ({knobs})" if knobs else name


def _did(trial: Trial) -> str:
    e = trial.estimates
    row_by_row = (
        f" By {trial.params['models']} models that forgot or never saw each row they are told with "
        f"{e['before_each_auc'].value:.2f} before and {e['each_auc'].value:.2f} after. Nothing is guaranteed: this is "
        "what was measured."
        if "each_auc" in e
        else ""
    )
    same = "as training without them does" if e["different"].value == 0 else "otherwise than training without them"
    many = int(trial.evidence["ranked"][:, 1].sum())
    return (
        f"With {_named(trial)} rows are told as learnt from with an area under the curve of "
        f"{e['before_auc'].value:.2f} before they are forgotten and {e['auc'].value:.2f} after (trained without them: "
        f"{e['anew_auc'].value:.2f}), and the model answers {same}. To forget these {many} rows takes "
        f"{float(str(trial.params['redone'])):.0%} of the work of training anew. By what changed between the two they "
        f"are told with {e['change_auc'].value:.2f}. Accuracy is {e['accuracy'].value:.1%} (one "
        f"plain network on the same rows: {e['control_accuracy'].value:.1%}), on the rows that stay "
        f"{e['kept_accuracy'].value:.1%} (trained without the others: {e['anew_kept_accuracy'].value:.1%}).{row_by_row}"
    )
