"""What claims share, of models and of encoders: a secret, p-values that are exact, and what thieves do to weights.

A p-value here is the chance, over the owner's secret draw, that a suspect which has nothing to do with it scores as
high as this one did. Nothing is assumed of the suspect but that it does not depend on the draw.
"""

from __future__ import annotations

import copy
import hashlib

import torch
from scipy import stats as scipy_stats
from torch import Tensor, nn

SHUFFLES = 9999
"""How many draws that the secret might have been it is compared with: no p-value is below one in so many and one."""
TIES = 1e-12
"""Scores that differ by no more than such a share of the largest are equal: sums depend on their order."""


def secret(seed: int, what: str) -> torch.Generator:
    """The draws of a key: they share nothing with those of a training of the same seed, or of another purpose."""
    digest = hashlib.sha256(f"{what} {seed}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)


def rank(own: float, others: Tensor) -> float:
    """The p-value of a score among those `(D,)` of what the secret might have been as well: ties count against it."""
    near = TIES * max(abs(own), float(others.abs().max()))
    return (1 + int((others >= own - near).sum())) / (1 + others.numel())


def shuffled(scores: Tensor, member: Tensor, draw: torch.Generator) -> float:
    """The p-value of how much higher `scores` `(N,)` are in the mean where `member` `(N,)` than elsewhere.

    It is the rank among `SHUFFLES` other choices of as many rows: exact where it was chance who is a member. A
    `ValueError` where all are on one side.
    """
    scores, many = scores.double(), int(member.sum())
    if many in (0, len(scores)):
        raise ValueError(f"expected rows on both sides, got {many} of {len(scores)}")
    chosen = torch.rand(SHUFFLES, len(scores), generator=draw).topk(many, dim=1).indices
    return rank(float(scores[member].mean()), scores[chosen].mean(1))


def binomial_tail(hits: int, many: int, chance: float) -> float:
    """The chance of `hits` or more out of `many`, each with `chance`."""
    return float(scipy_stats.binom.sf(hits - 1, many, chance))


def by_chance(hits: int, many: int, level: float) -> float:
    """The most probable that `hits` or more of `many` p-values at most `level` can be where each of them is right.

    They need not be independent, as those of models that are asked about one secret are not: then no more can be said
    than that so many are expected (Markov's inequality).
    """
    return min(1.0, many * level / hits) if hits else 1.0


def pruned(model: nn.Module, share: float) -> nn.Module:
    """A copy whose smallest weights, a `share` of them over all layers, are zero; biases and norms stay."""
    model = copy.deepcopy(model)
    weights = [parameter for parameter in model.parameters() if parameter.ndim > 1]
    sizes = torch.cat([weight.detach().abs().flatten() for weight in weights]).sort().values
    with torch.no_grad():
        for weight in weights:
            weight.mul_(weight.abs() >= sizes[int(share * len(sizes))])
    return model


def quantised(model: nn.Module) -> nn.Module:
    """A copy whose weights are rounded to 255 steps, the largest of every output deciding their size."""
    model = copy.deepcopy(model)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim > 1:
                step = (weight.flatten(1).abs().amax(1).clamp_min(1e-12) / 127).view(-1, *[1] * (weight.ndim - 1))
                weight.copy_((weight / step).round() * step)
    return model
