"""What the claims share: an owner's secret, a suspect's answers, and p-values that are exact.

A p-value here is the chance, over the owner's secret draw, that a model which has nothing to do with it scores as high
as the suspect did. The suspect is whatever it is: nothing is assumed of it but that it does not depend on the draw.
"""

from __future__ import annotations

import hashlib
from contextlib import nullcontext

import torch
from scipy import stats as scipy_stats
from torch import Tensor, nn

from buckler.data import Rows, count
from buckler.method import Holds, held
from buckler.nets import where
from buckler.target import Oracle, frozen

SHUFFLES = 9999
"""How many draws that the secret might have been it is compared with: no p-value is below one in so many and one."""


def secret(seed: int, what: str) -> torch.Generator:
    """The draws of a key: they share nothing with those of a training of the same seed, or of another purpose."""
    digest = hashlib.sha256(f"{what} {seed}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)


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


def binomial_tail(hits: int, many: int, chance: float) -> float:
    """The chance of `hits` or more out of `many`, each with `chance`."""
    return float(scipy_stats.binom.sf(hits - 1, many, chance))


def by_chance(hits: int, many: int, level: float) -> float:
    """The most probable that `hits` or more of `many` p-values at most `level` can be where each of them is right.

    They need not be independent, as those of models that are asked about one secret are not: then no more can be said
    than that so many are expected (Markov's inequality).
    """
    return min(1.0, many * level / hits) if hits else 1.0


def rank(own: float, others: Tensor) -> float:
    """The p-value of a score among those `(D,)` of what the secret might have been as well: ties count against it."""
    return (1 + int((others >= own).sum())) / (1 + others.numel())


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
    return rank(float(gains.double().trace()) - 1e-12, others)


def shuffled(scores: Tensor, member: Tensor, draw: torch.Generator) -> float:
    """The p-value of how much higher `scores` `(N,)` are in the mean where `member` `(N,)` than elsewhere.

    It is the rank among `SHUFFLES` other choices of as many rows: exact where it was chance who is a member.
    """
    scores, many = scores.double(), int(member.sum())
    if many in (0, len(scores)):
        raise ValueError(f"expected rows on both sides, got {many} of {len(scores)}")
    chosen = torch.rand(SHUFFLES, len(scores), generator=draw).topk(many, dim=1).indices
    return rank(float(scores[member].mean()) - 1e-12, scores[chosen].mean(1))
