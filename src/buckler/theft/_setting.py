"""What one evaluation works with: what it was asked for, and the blank trial that it fills in."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from buckler.data import batches
from buckler.method import Described, Method, left_open
from buckler.subject import Subject
from buckler.target import Meter
from buckler.threat import Threat
from buckler.trial import Trial, identity


@dataclass(frozen=True)
class Setting:
    """What one evaluation was asked for; see `evaluate.evaluate`."""

    method: Method
    described: Described
    subject: Subject
    rows: int
    queries: tuple[int, ...]
    reveals: str
    pool: str
    attack: Method | None
    train_rows: int
    epochs: float
    seed: int
    device: torch.device
    meter: Meter
    told: Callable[[float], None]
    """Takes the share of the evaluation that is done."""

    def blank(self, threat: Threat, asked: dict[str, object]) -> Trial:
        """A trial with nothing in it yet: `asked` is what the evaluation was asked beside the method's own knobs."""
        if left_open(self.method, "seed"):
            asked = {**asked, "seed": self.seed}
        subject = self.subject
        return Trial(
            method=self.described.path,
            kind=self.described.kind,
            params={**self.described.params, **asked},
            threat=threat,
            subject=identity(subject.name, subject.model, batches(subject.test, 256)),
            seed=self.seed,
            status="skipped",
            source=self.described.source,
        )
