"""What one evaluation works with: what it was asked for, and the blank trial that it fills in."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from buckler.evaluation import blank
from buckler.method import Described, Method
from buckler.subject import Subject
from buckler.target import Meter
from buckler.threat import Threat
from buckler.trial import Trial


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
        return blank(self.method, self.described, self.subject, threat, asked, self.seed)
