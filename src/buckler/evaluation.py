"""What the evaluators of areas do alike: the trial that they begin with, and what is put on it when they end."""

from __future__ import annotations

from dataclasses import replace

import torch

from buckler import stats
from buckler.data import batches
from buckler.method import Described, Method, left_open
from buckler.subject import Subject
from buckler.target import Meter
from buckler.threat import Threat
from buckler.trial import Cost, Trial, identity, peak_bytes


def blank(
    method: Method, described: Described, subject: Subject, threat: Threat, asked: dict[str, object], seed: int
) -> Trial:
    """A trial with nothing in it yet: `asked` is what the evaluation was asked beside the method's own knobs."""
    seeded = {"seed": seed} if left_open(method, "seed") else {}
    return Trial(
        method=described.path,
        kind=described.kind,
        params={**described.params, **asked, **seeded},
        threat=threat,
        subject=identity(subject.name, subject.model, batches(subject.test, 256)),
        seed=seed,
        status="skipped",
        source=described.source,
    )


def spent(trial: Trial, meter: Meter, device: torch.device) -> Trial:
    """The trial with what it cost and its evidence as it is kept; one that was skipped cost nothing."""
    if trial.status == "skipped":
        return trial
    cost = Cost(
        meter.forwards, meter.backwards, trial.cost.queries, meter.seconds, peak_bytes(device), meter.method_seconds
    )
    return replace(trial, evidence={name: stats.rows(tensor) for name, tensor in trial.evidence.items()}, cost=cost)
