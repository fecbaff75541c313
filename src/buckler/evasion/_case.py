"""The worst case over several trials, row by row, and on how many rows it is believed to be one."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from buckler import stats
from buckler.contract import told
from buckler.evasion._doubt import cross_check, gates
from buckler.findings import Cell
from buckler.stats import Estimate
from buckler.trial import Check, Trial

Family = tuple[str, Cell, str, str]
WHITE: Family = ("white-box", ("weights", "integrity"), "robust_accuracy", "An adversary who knows the weights")
ASKING: Family = ("queries", ("queries", "integrity"), "black_box_accuracy", "An adversary who only asks questions")
TRANSFER: Family = ("transfer", ("queries", "integrity"), "transfer_accuracy", "An adversary with a copy of their own")


@dataclass(frozen=True)
class Case:
    """The worst case over several trials in one norm, row by row."""

    norm: str
    radius: float
    correct: Tensor
    distance: Tensor
    trials: tuple[Trial, ...]

    def at(self, radius: float) -> Estimate:
        flags = self.correct & (self.distance > self.reach(radius))
        return stats.share(flags, f"rows right that none of {len(self.trials)} trials fooled within {radius:.4g}")

    @staticmethod
    def reach(radius: float) -> float:
        """The radius up to rounding, as `Ball.contains` has it."""
        return radius * (1 + 1e-5) + 1e-6

    def first(self, rows: int) -> Case:
        return replace(self, correct=self.correct[:rows], distance=self.distance[:rows])


def norm_of(trial: Trial) -> str:
    return str(trial.params.get("ball", "")).partition(":")[0]


def family_of(trial: Trial) -> Family:
    if "through" in trial.params:
        return TRANSFER
    return WHITE if trial.threat.sees == "weights" else ASKING


def worst(trials: Sequence[Trial], norm: str, radius: float) -> Case:
    """The smallest distance per row over trials; a trial on fewer rows speaks for the first rows only."""
    longest = max(trials, key=lambda t: len(t.evidence["distance"]))
    label, distance = longest.evidence["label"], longest.evidence["distance"].clone()
    for trial in trials:
        other = trial.evidence["distance"]
        if not torch.equal(trial.evidence["label"], label[: len(other)]):
            raise ValueError(f"expected trials of the same test rows, got other labels in {trial.method}")
        distance[: len(other)] = torch.minimum(distance[: len(other)], other)
    return Case(norm, radius, longest.evidence["correct"], distance, tuple(trials))


def believed_rows(case: Case, family: Family) -> tuple[int, str]:
    """On how many of the first rows the worst case is believed to be one, and, if on none, why.

    A trial vouches for rows standing at a radius if it was asked at that radius (or for the smallest change), its
    doubts were looked at, and none gates it. A doubt about another trial of the family stands until a trial that was
    asked the same found nothing; a trial that missed what a doubted one found vouches for nothing.
    """
    mine = [t for t in case.trials if family_of(t) is family]
    doubted = [t for t in mine if t.status == "inconclusive"]
    asked = [t for t in mine if t.status == "ok" and asked_at(t, case.radius) and t.params.get("doubt") is not False]
    raised = {c.name for t in doubted for c in t.checks if gates(c, transferred=family is TRANSFER)}
    vouching = [
        t
        for t in asked
        if raised <= {c.name for c in t.checks if told(c)} and not any(_missed(t, d, case) for d in doubted)
    ]
    if vouching:
        return max(len(t.evidence["distance"]) for t in vouching), ""
    if doubted:
        return 0, doubted[0].reason
    return 0, f"no attack whose doubts were looked at was asked at {case.norm}:{case.radius:g}."


def asked_at(trial: Trial, radius: float) -> bool:
    """Whether what a trial left standing says anything about `radius`."""
    return math.isinf(radius_of(trial)) or math.isclose(radius_of(trial), radius, rel_tol=1e-4)


def _missed(trial: Trial, other: Trial, case: Case) -> bool:
    """Whether `other` fooled more rows than chance would have it that `trial` did not."""
    n = min(len(trial.evidence["distance"]), len(other.evidence["distance"]))
    one, two = (t.evidence["distance"][:n] <= case.reach(case.radius) for t in (trial, other))
    return stats.beats(int((one & ~two).sum()), int((two & ~one).sum()))


def radius_of(trial: Trial) -> float:
    return float(str(trial.params["ball"]).partition(":")[2])


def ahead_of_weights(case: Case) -> Check | None:
    """Whether attacks that only ask fooled rows that those with the weights did not, on the rows both saw."""
    white = [t.evidence["distance"] for t in case.trials if family_of(t) is WHITE]
    other = [t.evidence["distance"] for t in case.trials if family_of(t) is not WHITE]
    if not other:
        return None
    n = min(max(map(len, white)), max(map(len, other)))

    def fell(distances: Sequence[Tensor]) -> Tensor:
        least = torch.full((n,), math.inf)
        for distance in distances:
            many = min(n, len(distance))
            least[:many] = torch.minimum(least[:many], distance[:many])
        return least <= case.reach(case.radius)

    return cross_check(fell(white), fell(other))
