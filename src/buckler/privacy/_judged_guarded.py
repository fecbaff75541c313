"""What trials of guards on answers say: what each hides from whom, and what is left to who knows it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from buckler.findings import Cell, Finding, NotMeasured, Rule, Verdicts
from buckler.judging import changed, resting, said
from buckler.privacy._guarded import best
from buckler.report import figures
from buckler.stats import Estimate
from buckler.trial import Trial

ASKED = ("rows", "models", "views", "train_rows", "training_epochs", "defence")
"""What `evaluate` may be asked beside a method's own knobs, as flags."""
QUERIES: Cell = ("queries", "confidentiality")
NAMES = {
    "naive": "a network that knows neither the guard nor the label",
    "network": "a network fitted to guarded answers",
    "classes": "thresholds for each class fitted to guarded answers",
    "lira": "LiRA with guarded shadows",
    "threshold": "a threshold on the loss",
    "near": "a threshold on the loss of the mean answer to near inputs",
    "labels": "labels alone",
}
"""Every attack, as a reader is told of it."""


def of_guards(trials: Sequence[Trial], table: Mapping[str, Rule], command: str) -> Verdicts:
    """One finding, for information, of all guards that were tried; and what could not be measured."""
    del table
    missing = tuple(NotMeasured(_named(t), t.reason, QUERIES) for t in trials if t.status != "ok")
    good = sorted((t for t in trials if t.status == "ok"), key=lambda t: _left(t).value)
    return Verdicts((_finding(good, command),) if good else (), missing)


def _finding(trials: Sequence[Trial], command: str) -> Finding:
    """The trial shown first is the one that leaves least."""
    shown = trials[0]
    e = shown.estimates
    bars = {f"{_named(t)}: {NAMES[name]}": t.estimates[f"{name}_auc"] for t in trials for name in _told(t)}
    before = best(e, "control_")
    bars[f"no guard: {before}"] = e[f"control_{before}_auc"]
    found = Finding(
        id="privacy/guards",
        title="What guards on answers hide of members",
        state="found",
        claim=" ".join(map(_did, trials)) + REST,
        cell=QUERIES,
        estimates={
            **{f"area under the curve, {NAMES[name]}": e[f"{name}_auc"] for name in NAMES},
            f"area under the curve, no guard, {before}": e[f"control_{before}_auc"],
            "accuracy": e["accuracy"],
            "accuracy without the guard": e["control_accuracy"],
            "labels kept": e["labels_kept"],
            "scores moved, l1": e["scores_moved"],
            "Brier score": e["brier"],
            "Brier score without the guard": e["control_brier"],
        },
        figures=(figures.bars(bars, axis="area under the curve", name="guards-auc"),),
    )
    return resting(found, trials, shown, command, ASKED)


def behind(trials: Sequence[Trial], command: str) -> Finding:
    """Inferences of membership through a guard, for information; the trial shown first is the one that tells most."""
    order = sorted(trials, key=lambda t: t.estimates["auc"].value, reverse=True)
    found = Finding(
        id="privacy/guarded",
        title="Which rows are given away behind a guard",
        state="found",
        claim=" ".join(map(_told_behind, order)) + REST,
        cell=QUERIES,
        estimates={f"area under the curve, {_through(t)}": t.estimates["auc"] for t in order},
        figures=(figures.roc({_through(t): t.evidence["ranked"] for t in order}, name="guarded-roc"),),
    )
    return resting(found, order, order[0], command, ASKED)


def _told_behind(trial: Trial) -> str:
    e = trial.estimates
    return (
        f"Behind {_guard(trial)} {_named(trial)} tells members with an area under the curve of {e['auc'].value:.2f} "
        f"and finds {e['found_at_one_percent'].value:.1%} of them where 1% of other rows are flagged."
    )


def _through(trial: Trial) -> str:
    return f"{_named(trial)} behind {_guard(trial)}"


def _guard(trial: Trial) -> str:
    defence = trial.params["defence"]
    path = defence["method"] if isinstance(defence, dict) else defence
    return str(path).rpartition("/")[2].replace("_", " ")


REST = (
    " A guard that keeps labels hides nothing from who asks for labels alone. None of this is a bound: only training "
    "with differential privacy gives one."
)


def _named(trial: Trial) -> str:
    knobs = ", ".join(f"{name} {said(value)}".replace("_", " ") for name, value in changed(trial).items())
    name = trial.method.rpartition("/")[2].replace("_", " ")
    return f"{name} ({knobs})" if knobs else name


def _left(trial: Trial) -> Estimate:
    return trial.estimates[f"{best(trial.estimates)}_auc"]


def _told(trial: Trial) -> tuple[str, ...]:
    """Who does not know the guard, the best of who does, and labels alone."""
    return tuple(dict.fromkeys(("naive", best(trial.estimates), "labels")))


def _did(trial: Trial) -> str:
    e, most = trial.estimates, best(trial.estimates)
    before = best(e, "control_")
    left = e[f"{most}_auc"]
    none = "" if left.low > 0.5 else ", which is not told from chance"
    return (
        f"With {_named(trial)} members are told with an area under the curve of {e['naive_auc'].value:.2f} by "
        f"{NAMES['naive']} ({e['control_naive_auc'].value:.2f} without the guard), of {left.value:.2f} by the best "
        f"attack that knows it, {NAMES[most]}{none} (without the guard the best has "
        f"{e[f'control_{before}_auc'].value:.2f}), and of {e['labels_auc'].value:.2f} by labels alone "
        f"({e['control_labels_auc'].value:.2f}). Scores move by {e['scores_moved'].value:.2f} on average, and "
        f"{e['labels_kept'].value:.0%} of labels are kept."
    )
