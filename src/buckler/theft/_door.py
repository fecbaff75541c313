"""What stands between a thief and the model: how much of an answer is shown, and for how many questions."""

from __future__ import annotations

import re
from typing import Literal

from torch import nn

from buckler.method import Holds
from buckler.target import Asked, Oracle
from buckler.theft.rounding import rounding
from buckler.theft.top_k import top_k

Detail = Literal["labels", "scores", "logits"]


def door(model: nn.Module | Oracle, reveals: str, budget: int | None = None) -> Oracle:
    """An oracle on `model` that reveals what `reveals` says, for at most `budget` rows.

    A `ValueError` for what cannot be read, and for more than an oracle reveals itself.
    """
    detail, classes, digits = read(reveals)
    if classes is None and digits is None:
        return model.narrowed(detail, budget) if isinstance(model, Oracle) else Oracle(model, detail, budget)
    shown = Asked(model) if isinstance(model, Oracle) else model
    shown = shown if classes is None else top_k(shown, k=classes)
    return Oracle(shown if digits is None else rounding(shown, digits=digits), "scores", budget)


def read(reveals: str) -> tuple[Detail, int | None, int | None]:
    """The detail, and how many classes and digits of scores are shown, where that is said: `top3-digits2`."""
    if reveals in ("labels", "scores", "logits"):
        return reveals, None, None
    found = re.fullmatch(r"(?:top(\d+))?-?(?:digits(\d+))?", reveals)
    if not found or not any(found.groups()):
        raise ValueError(f"expected reveals as labels, scores, logits, top3, digits2 or top3-digits2, got {reveals!r}")
    classes, digits = (None if text is None else int(text) for text in found.groups())
    return "scores", classes, digits


def shown_to(holds: Holds, reveals: str, model: nn.Module | Oracle) -> str:
    """`reveals`, or labels where the thief makes no use of more, or the model reveals no more."""
    read(reveals)
    if holds == "labels" or (isinstance(model, Oracle) and model.reveals == "labels"):
        return "labels"
    return "scores" if isinstance(model, Oracle) and model.reveals == "scores" and reveals == "logits" else reveals
