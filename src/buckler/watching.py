"""What evaluations of detectors of queries share: a look that is whole, the first alarm, and what chance does."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from buckler.data import Rows
from buckler.kinds import Watched


def looked(watch: Callable[[Rows], Watched], stream: Rows) -> Watched:
    """What a detector says of a stream; a `ValueError` unless it says so of every question, by numbers."""
    look, many = watch(stream), len(stream[0])
    if look.flagged.shape != (many,) or look.score.shape != (many,):
        raise ValueError(
            f"expected flags and scores of {many} questions, got {tuple(look.flagged.shape)} flags and "
            f"{tuple(look.score.shape)} scores"
        )
    if bool(look.score.isnan().any()):
        raise ValueError("expected scores that can be ordered, got NaN")
    return look


def alarms(raised: Sequence[Tensor]) -> Tensor:
    """The number, from 1, of the question at which each stream first raised the alarm, or infinity: `(C,)`."""
    places = [over.nonzero().flatten() for over in raised]
    return torch.tensor([float(at[0]) + 1 if len(at) else math.inf for at in places])


def higher(hits: int, many: int, others: int) -> float:
    """How probably `hits` of `many` scores, or more, are above the highest of `others`, where all are alike: that the
    so many highest of all are among the `many`."""
    return math.comb(many, hits) / math.comb(others + many, hits)
