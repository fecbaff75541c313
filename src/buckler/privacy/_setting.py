"""What one evaluation works with: what it was asked for, the blank trial that it fills in, and knobs left open."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from buckler.evaluation import blank
from buckler.method import Described, Method, left_open
from buckler.subject import Subject
from buckler.target import Meter
from buckler.threat import Threat
from buckler.trial import Trial


@dataclass(frozen=True)
class Setting:
    """What one evaluation was asked for."""

    method: Method
    described: Described
    subject: Subject
    rows: int
    models: int
    views: int
    train_rows: int
    training_epochs: float
    defence: Method | None
    """The defence by training that an audit is of, or the guard before an inference; None is none."""
    seed: int
    keep: Path | None
    device: torch.device
    meter: Meter
    told: Callable[[float], None]
    """Takes the share of the evaluation that is done."""

    def left_open(self, *filled: str) -> set[str]:
        """Those of the knobs `filled`, by an evaluation, that the method asks for and is not configured with."""
        return left_open(self.method, *filled)

    def asked(self, *names: str) -> dict[str, object]:
        """What of these was asked for, as a trial records it."""
        return {name: vars(self)[name] for name in names}

    def blank(self, threat: Threat, asked: dict[str, object]) -> Trial:
        """A trial with nothing in it yet: `asked` is what the evaluation was asked beside the method's own knobs."""
        return blank(self.method, self.described, self.subject, threat, asked, self.seed)
