"""What the evaluators of areas do alike: the trial that they begin with, and what is put on it when they end."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from buckler import stats
from buckler.data import batches
from buckler.method import Described, Method, left_open
from buckler.subject import Subject
from buckler.target import Meter, Oracle, frozen, metered
from buckler.threat import Threat
from buckler.trial import Cost, Trial, identity, peak_bytes


class Running(NamedTuple):
    """What an evaluation runs on and is counted by; `told` takes the share of it that is done."""

    device: torch.device
    meter: Meter
    told: Callable[[float], None]


@contextmanager
def running(
    subject: Subject, seed: int, tick: Callable[[float, int], None] | None = None
) -> Generator[Running, None, None]:
    """Inside, what is drawn is decided by `seed` and leaves nothing behind; the subject's model and encoder evaluate,
    and what goes through the model is counted. Afterwards they are as they were."""
    device = subject.device
    model, encoder = ([one] if isinstance(one, nn.Module) else [] for one in (subject.model, subject.encoder))
    parts = [part for one in (*model, *encoder) for part in one.modules()]
    modes = [part.training for part in parts]

    def told(done: float) -> None:
        if tick is not None:
            tick(done, meter.forwards)

    with torch.random.fork_rng([device] if device.type == "cuda" else []), metered(*model) as meter:
        torch.manual_seed(seed)
        for part in parts:
            part.eval()
        try:
            yield Running(device, meter, told)
        finally:
            for part, mode in zip(parts, modes, strict=True):
                part.training = mode


def honest(model: nn.Module, guard: nn.Module, x: Tensor, y: Tensor) -> dict[str, Tensor]:
    """What a guard changes for honest users, row by row, on the CPU: whether labels are right, with it and `unguarded_`
    without, and kept; how far scores move, in l1; and Brier's score of them. A `ValueError` for scores of another shape
    or that are not finite."""
    with frozen(model), frozen(guard):
        before, after = (Oracle(one, "scores")(x).cpu() for one in (model, guard))
    if before.shape != after.shape or not bool(after.isfinite().all()):
        raise ValueError(f"expected finite scores {tuple(before.shape)} of a guarded model, got {tuple(after.shape)}")
    y = y.cpu()
    truth = F.one_hot(y, before.shape[1]).to(before)
    return {
        "correct": after.argmax(1) == y,
        "unguarded_correct": before.argmax(1) == y,
        "label_kept": after.argmax(1) == before.argmax(1),
        "moved": (after - before).abs().sum(1),
        "brier": (after - truth).square().sum(1),
        "unguarded_brier": (before - truth).square().sum(1),
    }


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
        subject=identity(subject.name, subject.model, batches(subject.test, 256), subject.encoder),
        seed=seed,
        status="skipped",
        source=described.source,
    )


def skipped(blank: Trial, reason: str) -> Trial:
    """The trial of a method that the subject does not admit."""
    return replace(blank, status="skipped", reason=reason)


def spent(trial: Trial, meter: Meter, device: torch.device) -> Trial:
    """The trial with what it cost and its evidence as it is kept; one that was skipped cost nothing."""
    if trial.status == "skipped":
        return trial
    cost = Cost(
        meter.forwards, meter.backwards, trial.cost.queries, meter.seconds, peak_bytes(device), meter.method_seconds
    )
    return replace(trial, evidence={name: stats.rows(tensor) for name, tensor in trial.evidence.items()}, cost=cost)
