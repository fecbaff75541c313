"""Two runs side by side: the same method against the same threat, row by row where the rows are the same."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from buckler import stats
from buckler.stats import Estimate
from buckler.trial import DamagedTrial, Trial, load


@dataclass(frozen=True)
class Pair:
    """One estimate of one method in two runs; `change` is the paired difference where both saw the same rows."""

    method: str
    within: str
    name: str
    before: Estimate
    after: Estimate
    change: Estimate | None


def compare(before: Path, after: Path) -> tuple[list[Pair], list[str]]:
    """What two runs have in common, and a sentence for each trial that cannot be compared.

    Trials are compared only if method, parameters and threat are equal and both are `ok`.
    """
    alone: list[str] = []
    first, second = _trials(before, alone), _trials(after, alone)
    pairs: list[Pair] = []
    names = [" and ".join(sorted({trial.subject["name"] for trial in run.values()})) for run in (first, second)]
    if names[0] != names[1] and all(names):
        alone.append(f"The subjects differ: {names[0]} in {before}, {names[1]} in {after}.")
    for key, trial in first.items():
        here = f"{trial.method} at {trial.threat.within}"
        if key not in second:
            alone.append(f"{here}: only in {before}")
        elif trial.status == second[key].status == "ok":
            pairs += _pairs(trial, second[key])
        else:
            alone.append(f"{here}: {trial.status} in {before}, {second[key].status} in {after}, so not compared")
    alone += [f"{t.method} at {t.threat.within}: only in {after}" for key, t in second.items() if key not in first]
    return pairs, alone


def _trials(run: Path, said: list[str]) -> dict[str, Trial]:
    """The sound trials of a run; of a damaged one something is said."""
    if not (run / "trials").is_dir():
        raise ValueError(f"expected a run folder with trials in it, got {run}")
    trials: dict[str, Trial] = {}
    for folder in sorted((run / "trials").iterdir()):
        if folder.name.startswith(".") or ".damaged" in folder.name or not folder.is_dir():
            continue
        try:
            trial = load(folder)
        except DamagedTrial as error:
            said.append(f"{run}: a damaged trial is left out ({error})")
            continue
        key = json.dumps([trial.method, trial.params, trial.threat.record()], sort_keys=True, default=str)
        trials[key] = trial
    return trials


def _pairs(before: Trial, after: Trial) -> list[Pair]:
    pairs: list[Pair] = []
    same = before.subject.get("data") == after.subject.get("data")
    for name, estimate in before.estimates.items():
        if name in after.estimates:
            change = _change(before, after, estimate.how) if same else None
            pairs.append(Pair(before.method, before.threat.within, name, estimate, after.estimates[name], change))
    return pairs


def _change(before: Trial, after: Trial, how: str) -> Estimate | None:
    """Of a share of the same rows: how many were won less how many were lost, with the interval for pairs."""
    statistic, _, name = how.partition(" of ")
    if statistic != "share" or name not in before.evidence or name not in after.evidence:
        return None
    old, new = before.evidence[name], after.evidence[name]
    return stats.difference(new.long() - old.long(), name) if old.shape == new.shape else None
