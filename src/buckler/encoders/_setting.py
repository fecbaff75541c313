"""What one evaluation works with: what it was asked for and may be, and the blank trial that it fills in."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch

from buckler.evaluation import blank
from buckler.method import Described, Method, describe, left_open
from buckler.subject import Subject
from buckler.target import Meter
from buckler.threat import Ball, Share, Threat
from buckler.train import lasting
from buckler.trial import Trial

USED: Mapping[str, tuple[str, ...]] = {
    "pretrain": (),
    "probe": ("ball",),
    "evade": ("ball",),
    "certify": ("ball",),
    "poison": ("share",),
    "bag": ("share",),
    "extract": ("queries",),
    "guard": ("queries", "attack"),
    "watch": ("queries", "attack"),
    "own": ("models",),
    "infer": (),
    "reconstruct": (),
    "guess": ("models",),
    "implant": (),
    "inspect": ("attack",),
    "repair": ("attack",),
}
"""What of `evaluate`'s words each kind of method makes use of, beside rows, training and what the encoder is."""
WORDS = ("queries", "ball", "share", "attack", "models")
KINDS: Mapping[str, tuple[str, ...]] = {
    "pretraining": ("pretrain",),
    "attack": ("extract", "evade", "poison", "implant"),
}

ALONE = ("encoders/pair_poisoning",)
"""What pre-trains in a way of its own, though it is of another kind,"""
COMPARED = ("encoders/adversarial_contrastive", "encoders/dp_rotation")
"""and what pre-trains, and is compared with another pre-training."""


def fitting(kind: str, asked: Mapping[str, object], path: str = "") -> None:
    """A `ValueError` where `evaluate` is asked what a kind of method, or the one at `path`, makes nothing of, or what
    makes no sense."""
    if asked.get("pretraining") is not None and (path in ALONE or (kind == "pretrain" and path not in COMPARED)):
        raise ValueError(f"expected no pretraining here: {path or 'the method'} pre-trains the encoder itself")
    lasting(cast(float, asked.get("training_epochs", 1)))
    for name in WORDS:
        if name in asked and name not in USED.get(kind, ()):
            raise ValueError(f"expected no {name} here: a method of the kind {kind} makes no use of it")
    queries = cast("Sequence[int]", asked.get("queries", (1,)))
    if not queries or min(queries) < 1:
        raise ValueError(f"expected budgets of at least one query, got {', '.join(map(str, queries)) or 'none'}")
    for name, kinds in KINDS.items():
        if asked.get(name) is not None and (found := describe(cast(Method, asked[name]))).kind not in kinds:
            raise ValueError(f"expected for {name} a method of {' or '.join(kinds)}, got {found.path}, of {found.kind}")


@dataclass(frozen=True)
class Setting:
    """What one evaluation was asked for; see `evaluate.evaluate`."""

    method: Method
    described: Described
    subject: Subject
    rows: int
    train_rows: int
    encoder_steps: int
    pretraining: Method
    queries: tuple[int, ...]
    ball: Ball | None
    share: Share | None
    attack: Method | None
    models: int
    training_epochs: float
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
