"""What trials of defences say: what each buys in leaks that are stopped, and what it costs in accuracy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from buckler.findings import Cell, Figure, Finding, NotMeasured, Rule, Verdicts
from buckler.judging import changed, resting, said
from buckler.privacy._judged_guarded import ASKED
from buckler.report import figures
from buckler.stats import Estimate
from buckler.trial import Trial

TRAINING: Cell = ("training", "confidentiality")
AREA = "LiRA, area under the curve"


def of_protection(trials: Sequence[Trial], table: Mapping[str, Rule], command: str) -> Verdicts:
    """One finding, for information, of all defences that were tried; and what could not be measured."""
    del table
    missing = tuple(NotMeasured(_named(t), t.reason, TRAINING) for t in trials if t.status != "ok")
    good = [t for t in trials if t.status == "ok"]
    return Verdicts((_finding(good, command),), missing) if good else Verdicts((), missing)


def _finding(trials: Sequence[Trial], command: str) -> Finding:
    """The trial shown first is the one that leaks least."""
    order = sorted(trials, key=lambda trial: trial.estimates["auc"].value)
    best = order[0].estimates
    found = Finding(
        id="privacy/defences",
        title="What defences by training buy and cost",
        state="found",
        claim=_claim(order),
        cell=TRAINING,
        estimates={
            **{f"accuracy, {_named(trial)}": trial.estimates["accuracy"] for trial in order},
            "accuracy, undefended": best["control_accuracy"],
            **{f"{AREA}, {_named(trial)}": trial.estimates["auc"] for trial in order},
            f"{AREA}, undefended": best["control_auc"],
        },
        figures=(*_curve(trials), _bars(order, "accuracy", "accuracy"), _bars(order, "auc", AREA)),
    )
    return resting(found, trials, order[0], command, ASKED)


def _named(trial: Trial) -> str:
    knobs = ", ".join(f"{name} {said(value)}".replace("_", " ") for name, value in changed(trial).items())
    if "promised_epsilon" in trial.params and "epsilon" not in knobs:
        knobs = f"epsilon {said(trial.params['epsilon'])}" + (f", {knobs}" if knobs else "")
    name = trial.method.rpartition("/")[2].replace("_", " ")
    return f"{name} ({knobs})" if knobs else name


def _claim(trials: Sequence[Trial]) -> str:
    before = trials[0].estimates
    plain = f"accuracy is {before['control_accuracy'].value:.1%} and LiRA's area under the curve"
    each = [f"with {_named(t)} {t.estimates['accuracy'].value:.1%} and {t.estimates['auc'].value:.2f}" for t in trials]
    promised = any("promised_epsilon" in t.params for t in trials)
    bound = " Where an epsilon is promised, no attack at all can do better than it allows." if promised else ""
    return f"Undefended, {plain} {before['control_auc'].value:.2f}; {'; '.join(each)}.{bound}"


def _bars(trials: Sequence[Trial], name: str, axis: str) -> Figure:
    bars = {_named(trial): trial.estimates[name] for trial in trials}
    bars["undefended"] = trials[0].estimates[f"control_{name}"]
    return figures.bars(bars, axis=axis, name=f"defences-{name.replace('_', '-')}")


def _curve(trials: Sequence[Trial]) -> list[Figure]:
    """Accuracy and leak against the epsilon that is promised, where one method promises several."""
    drawn: list[Figure] = []
    for method in dict.fromkeys(t.method for t in trials):
        own = {float(f"{t.params['promised_epsilon']:.3g}"): t.estimates for t in trials if _promises(t, method)}
        if len(own) > 1:
            at = sorted(own)
            curves: dict[str, tuple[Sequence[float], Sequence[Estimate]]] = {
                label: (at, [own[epsilon][name] for epsilon in at])
                for label, name in (("accuracy", "accuracy"), (AREA, "auc"))
            }
            name = method.rpartition("/")[2].replace("_", "-")
            drawn.append(figures.exchange(curves, axis="epsilon promised", name=f"{name}-epsilon"))
    return drawn


def _promises(trial: Trial, method: str) -> bool:
    return trial.method == method and "promised_epsilon" in trial.params
