"""What claims of an encoder share: a secret, and p-values that are exact.

A p-value here is the chance, over the owner's secret draw, that an encoder which has nothing to do with it scores as
high as the suspect did. Nothing is assumed of the suspect but that it does not depend on the draw.
"""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

SHUFFLES = 9999
"""How many draws that the secret might have been it is compared with: no p-value is below one in so many and one."""


def secret(seed: int, what: str) -> torch.Generator:
    """The draws of a key: they share nothing with those of a training of the same seed, or of another purpose."""
    digest = hashlib.sha256(f"{what} {seed}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)


def rank(own: float, others: Tensor) -> float:
    """The p-value of a score among those `(D,)` of what the secret might have been as well: ties count against it."""
    return (1 + int((others >= own - 1e-12).sum())) / (1 + others.numel())


def shuffled(scores: Tensor, member: Tensor, draw: torch.Generator) -> float:
    """The p-value of how much higher `scores` `(N,)` are in the mean where `member` `(N,)` than elsewhere: the rank
    among other choices of as many rows, exact where it was chance who is a member. A `ValueError` for one side only.
    """
    scores, many = scores.double(), int(member.sum())
    if many in (0, len(scores)):
        raise ValueError(f"expected rows on both sides, got {many} of {len(scores)}")
    chosen = torch.rand(SHUFFLES, len(scores), generator=draw).topk(many, dim=1).indices
    return rank(float(scores[member].mean()), scores[chosen].mean(1))


def by_chance(hits: int, many: int, level: float) -> float:
    """The most probable that `hits` or more of `many` p-values at most `level` can be where each of them is right, as
    many as are expected being all that is known of p-values that need not be independent (Markov's inequality)."""
    return min(1.0, many * level / hits) if hits else 1.0
