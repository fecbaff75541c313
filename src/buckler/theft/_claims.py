"""What claims of classifiers share: a suspect's answers, and a p-value of directions; see `claims` for the others."""

from __future__ import annotations

from contextlib import nullcontext

import torch
from torch import Tensor, nn

from buckler.claims import SHUFFLES, rank
from buckler.data import Rows, count
from buckler.method import Holds, held
from buckler.nets import where
from buckler.target import Oracle, frozen


def answers(suspect: nn.Module | Oracle, x: Tensor, reveals: Holds = "labels") -> tuple[Tensor, int]:
    """What the suspect says of `x` `(B, ...)`, evaluating, on the CPU, and how many rows it was asked.

    A `ValueError` where it reveals less than `reveals`.
    """
    door = held(reveals, suspect)
    if not isinstance(door, Oracle):
        raise TypeError("expected an oracle")
    module = isinstance(suspect, nn.Module)
    with frozen(suspect) if module else nullcontext():
        out = door(x.to(where(suspect)) if module else x)
    return out.detach().cpu(), door.asked


def readable(suspect: nn.Module | Oracle) -> nn.Module:
    """The suspect itself, where a claim looks inside; a `ValueError` where only its answers can be had."""
    if isinstance(suspect, Oracle):
        raise ValueError("expected the suspect itself, got an oracle: its weights are what is looked at")
    return suspect


def classes_of(data: Rows, path: str) -> int:
    """How many classes the labels tell apart; a `ValueError` for no rows, or fewer than two classes."""
    many = 1 + int(data[1].max()) if count(data) else 0
    if many < 2:
        raise ValueError(f"{path}: expected rows of two classes or more, got {len(data[1])} of {many}")
    return many


def assigned(gains: Tensor, draw: torch.Generator) -> float:
    """The p-value of the trace of `gains` `(K, K)`, of every class along every direction.

    It is the rank among `SHUFFLES` other assignments of directions to classes, each direction either way: exact where
    directions were drawn independently and as probably the one way as the other.
    """
    many = len(gains)
    order = torch.rand(SHUFFLES, many, generator=draw).argsort(1)
    way = 2.0 * torch.randint(2, (SHUFFLES, many), generator=draw) - 1
    others = (gains.double()[torch.arange(many), order] * way).sum(1)
    return rank(float(gains.double().trace()), others)
