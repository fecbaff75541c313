"""What trials of forgetting say: whether rows that were to be forgotten are, and what that costs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from buckler.findings import Cell, Finding, NotMeasured, Rule, Severity, Verdicts
from buckler.judging import changed, resting, said
from buckler.privacy._unlearning import GONE
from buckler.trial import Trial

TRAINING: Cell = ("training", "confidentiality")
ASKED = ("rows", "train_rows", "training_epochs")


def of_unlearning(trials: Sequence[Trial], table: Mapping[str, Rule], command: str) -> Verdicts:
    """One finding of all that was tried: high where rows that were to be forgotten still show, else for information."""
    del table
    missing = tuple(NotMeasured(_named(t), t.reason, TRAINING) for t in trials if t.status != "ok")
    good = sorted((t for t in trials if t.status == "ok"), key=lambda t: t.estimates["auc"].low, reverse=True)
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
            "rows answered otherwise than by training without them": e["different"],
            "accuracy": e["accuracy"],
            "accuracy, plain training on the same rows": e["control_accuracy"],
            "accuracy lost": e["accuracy_lost"],
        },
        remedy="Train again without the rows." if kept else "",
    )
    return resting(found, trials, worst, command, ASKED)


def _gone(trial: Trial) -> bool:
    return all(check.passed for check in trial.checks if check.name == GONE)


def _named(trial: Trial) -> str:
    knobs = ", ".join(f"{name} {said(value)}".replace("_", " ") for name, value in changed(trial).items())
    name = trial.method.rpartition("/")[2].replace("_", " ")
    return f"{name} ({knobs})" if knobs else name


def _did(trial: Trial) -> str:
    e = trial.estimates
    same = "as training without them does" if e["different"].value == 0 else "otherwise than training without them"
    return (
        f"With {_named(trial)} rows are told as learnt from with an area under the curve of "
        f"{e['before_auc'].value:.2f} before they are forgotten and {e['auc'].value:.2f} after, and the model answers "
        f"{same}. To forget these {int(trial.evidence['ranked'][:, 1].sum())} rows takes "
        f"{float(str(trial.params['redone'])):.0%} of the work of training anew. By what changed between the two they "
        f"are told with {e['change_auc'].value:.2f}. Accuracy is {e['accuracy'].value:.1%} (one "
        f"plain network on the same rows: {e['control_accuracy'].value:.1%})."
    )
