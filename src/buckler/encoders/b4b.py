"""B4B: an account whose features lie all over the space is copying the encoder; one with a task keeps to a part of it.

Dubiński, Pawlak, Boenisch, Trzciński and Dziedzic, "Bucks for buckets (B4B): active defenses against stealing
encoders", NeurIPS 2023, https://arxiv.org/abs/2310.08571.

Differs from the paper: features are taken less the mean of those that the owner knows, without which features that are
all positive share a few buckets; the share of buckets is the mean over several hashes, because with the few hundred
questions that tell most here it depends on the one that is drawn; buckets are 64 and not 4,096, as they are to be
fewer than questions are. The noise that grows with this share, and the turning of every account's features, are what
an evaluation does with it.

No guarantee. Whoever has a use for all that the encoder knows covers as much as a thief does. Who asks from several
accounts covers little with each.

Tags: atlas:AML.M0004, atlas:AML.M0024, atlas:AML.T0024.002, nist-ai-100-2:NISTAML.031, owasp-ml:ML05.
"""

from __future__ import annotations

import torch
from torch import Tensor

from buckler.claims import secret
from buckler.data import Rows
from buckler.kinds import Watched


def b4b(
    queries: Rows, *, known: Tensor, threshold: float = 0.8, bits: int = 6, hashes: int = 10, seed: int = 0
) -> Watched:
    """The share of all buckets that an account's features have been in.

    `queries` are what one account asked, in order: inputs `(N, ...)`, which are not looked at, and the features
    `(N, D)` that belong to them; `known` `(M, D)` are features of rows that the owner has. A bucket is on which sides
    of `bits` random planes through the mean of these a feature lies: there are 2 to the `bits` of them, in each of
    `hashes`, which `seed` draws. `score` `(N,)` is the share covered so far, in the mean over the hashes; the account
    is flagged from where it is above `threshold` on. A `ValueError` for numbers out of range, and for features that
    are not those of the same encoder.
    """
    features = queries[1]
    if not 0 <= threshold <= 1 or not 1 <= bits <= 30 or hashes < 1:
        raise ValueError(
            f"expected a threshold in [0, 1], 1 to 30 bits and a hash or more, got {threshold}, {bits} and {hashes}"
        )
    if features.ndim != 2 or known.ndim != 2 or features.shape[1] != known.shape[1] or len(known) == 0:
        raise ValueError(
            f"expected features (N, D) and known ones (M, D), got {tuple(features.shape)} and {tuple(known.shape)}"
        )
    planes = torch.randn(known.shape[1], hashes * bits, generator=secret(seed, "b4b"))
    sides = ((features.cpu().float() - known.cpu().float().mean(0)) @ planes > 0).view(len(features), hashes, bits)
    buckets = (sides.long() * 2 ** torch.arange(bits)).sum(2)
    covered = _first(buckets).sum(1).cumsum(0).double() / (hashes * 2**bits)
    return Watched((covered > threshold).cummax(0).values if len(covered) else covered > 0, covered)


def _first(buckets: Tensor) -> Tensor:
    """Where a number of a column of `buckets` `(N, H)` stands for the first time, `(N, H)`."""
    held, place = buckets.sort(dim=0, stable=True)
    new = torch.ones_like(held, dtype=torch.bool)
    new[1:] = held[1:] != held[:-1]
    return torch.zeros_like(new).scatter(0, place, new)
