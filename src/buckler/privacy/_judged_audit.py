"""What audits say: whether a training keeps what it promises, or what it gives away without a promise."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from buckler.findings import Cell, Finding, NotMeasured, Rule, Severity, Verdicts
from buckler.judging import resting
from buckler.stats import Estimate
from buckler.trial import Trial

TRAINING: Cell = ("training", "confidentiality")
ASKED = ("train_rows", "defence")


def of_audit(trials: Sequence[Trial], table: Mapping[str, Rule], command: str) -> Verdicts:
    """One finding of the audit that says most; a promise that is broken is critical, and contradicts what was said."""
    del table
    missing = tuple(NotMeasured(_named(t), t.reason, TRAINING) for t in trials if t.status != "ok")
    good = sorted((t for t in trials if t.status == "ok"), key=_beyond, reverse=True)
    broken = tuple(f"{_did(t)} The accountant and the audit cannot both be right." for t in good if _beyond(t) > 0)
    return Verdicts((_finding(good, command),) if good else (), missing, broken)


def _beyond(trial: Trial) -> float:
    """By how much the bound is above the promise; without a promise below every trial that has one."""
    promised = trial.params.get("promised_epsilon")
    bound = trial.estimates["epsilon"].low
    return bound - float(str(promised)) if promised is not None else bound - 1e9


def _finding(trials: Sequence[Trial], command: str) -> Finding:
    worst = trials[0]
    broken = _beyond(worst) > 0
    found = Finding(
        id="privacy/epsilon",
        title="Whether the training keeps its promise of privacy",
        state="found",
        severity=Severity.critical if broken else Severity.info,
        because="What was measured is beyond what was promised." if broken else "",
        claim=" ".join(map(_did, trials)),
        cell=TRAINING,
        estimates={label: estimate for t in trials for label, estimate in _shown(t).items()},
        remedy="Do not rely on the promise: look for noise, clipping, sampling and accounting that do not belong to "
        "each other."
        if broken
        else "",
    )
    return resting(found, trials, worst, command, ASKED)


def _shown(trial: Trial) -> dict[str, Estimate]:
    return {
        f"epsilon at least, {_named(trial)}": trial.estimates["epsilon"],
        f"epsilon that so many canaries can show at most, {_named(trial)}": trial.estimates["reach"],
        f"epsilon, were it a Gaussian mechanism, {_named(trial)}": trial.estimates["gaussian_epsilon"],
    }


def _named(trial: Trial) -> str:
    defence = trial.params.get("defence")
    path = defence.get("method") if isinstance(defence, dict) else defence
    return "the plain training" if path is None else str(path).rpartition("/")[2].replace("_", " ")


def _did(trial: Trial) -> str:
    e, promised = trial.estimates["epsilon"], trial.params.get("promised_epsilon")
    said = f"{_named(trial)} gives away an epsilon of {e.low:.2f} or more by {e.n} canaries"
    if promised is None:
        return f"{said[:1].upper()}{said[1:]}, and promises nothing."
    most = f"not refuted where {trial.estimates['reach'].value:.2f} could be shown, and not proven by that"
    kept = "broken" if _beyond(trial) > 0 else most
    return f"{said[:1].upper()}{said[1:]}; it promises {float(str(promised)):.3g}, which is {kept}."
