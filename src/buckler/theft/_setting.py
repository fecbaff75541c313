"""What one evaluation works with: what it was asked for and may be, and the blank trial that it fills in."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import torch

from buckler.evaluation import blank
from buckler.method import Described, Method, describe
from buckler.subject import Subject
from buckler.target import Meter
from buckler.theft._door import read
from buckler.threat import Threat
from buckler.trial import Trial

UNUSED: Mapping[str, tuple[str, ...]] = {
    "extract": ("attack", "models", "training_epochs"),
    "guard": ("models", "training_epochs"),
    "own": ("queries", "reveals", "pool", "attack", "models"),
    "guess": ("attack",),
    "watch": ("models", "training_epochs"),
}
"""What `evaluate` may be asked, and each kind of method makes nothing of."""
POOLS = ("test", "train", "noise")


def fitting(kind: str, asked: Mapping[str, object], _path: str = "") -> None:
    """A `ValueError` where `evaluate` is asked what a kind of method makes nothing of, or what makes no sense."""
    for name in UNUSED.get(kind, ()):
        if name in asked:
            raise ValueError(
                f"expected no {name.replace('_', ' ')} here: a method of the kind {kind} makes no use of it"
            )
    queries = cast("Sequence[int]", asked.get("queries", (1,)))
    if not queries or min(queries) < 1:
        raise ValueError(f"expected budgets of at least one query, got {', '.join(map(str, queries)) or 'none'}")
    read(str(asked.get("reveals", "scores")))
    if (pool := asked.get("pool", "test")) not in POOLS:
        raise ValueError(f"expected a pool out of {', '.join(POOLS)}, got {pool!r}")
    if "attack" in asked and (thief := describe(cast(Method, asked["attack"]))).kind != "extract":
        raise ValueError(f"expected an attack that makes a copy, got {thief.path}, of the kind {thief.kind}")


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
    models: int
    training_epochs: float
    seed: int
    device: torch.device
    meter: Meter
    told: Callable[[float], None]
    """Takes the share of the evaluation that is done."""

    def asked(self, *names: str) -> dict[str, object]:
        """What of these was asked for, as a trial records it."""
        return {name: vars(self)[name] for name in names}

    def blank(self, threat: Threat, asked: dict[str, object]) -> Trial:
        """A trial with nothing in it yet: `asked` is what the evaluation was asked beside the method's own knobs."""
        return blank(self.method, self.described, self.subject, threat, asked, self.seed)
