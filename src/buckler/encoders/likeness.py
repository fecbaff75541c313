"""Likeness: a copy finds the same images alike as the owner's encoder does, more than encoders made the same way do.

Dziedzic, Duan, Kaleem, Dhawan, Guan, Cattan, Boenisch and Papernot, "Dataset inference for self-supervised models",
NeurIPS 2022, https://arxiv.org/abs/2209.09024, where copies are also told by how like their representations are.

How alike a suspect finds each two of some images, by the cosine of its features less their mean, is correlated with how
alike the owner's encoder finds them, and with what `references` find that the owner pre-trains in the same way, on the
same rows, by other draws. Nothing is put into the encoder, and how a suspect's features are turned, or how many they
are, does not matter.

The p-value is that of Student's t for one more draw: for a suspect that has nothing to do with the owner's training
the owner's encoder is one of so many that were made alike, and its correlation a draw like theirs. It is exact where
these are normal, which a handful of them cannot show.

Differs from the paper, which measures mutual information, and cosines between features themselves: no map from one
representation to the other is learnt, and the comparison is with references, not with a threshold.

No guarantee: a thief who learns enough from other rows drifts away.

Tags: atlas:AML.T0048.004, atlas:AML.T0024.002, nist-ai-100-2:NISTAML.031, owasp-ml:ML05.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from scipy import stats as scipy_stats
from torch import Tensor, nn
from torch.nn import functional as F

from buckler.claims import secret
from buckler.data import Rows, as_tensors, count
from buckler.embedding import embedded
from buckler.kinds import Claim, Owned
from buckler.target import Oracle


def likeness(
    model: nn.Module,
    data: Rows,
    *,
    training: Callable[[Rows, int], nn.Module],
    references: int = 4,
    most: int = 200,
    seed: int = 0,
) -> Owned:
    """Claim what finds images alike as the encoder `model` does, which learnt from `data`, `x` `(N, C, H, W)`.

    `training` makes an encoder of rows by draws of a number, as `model` was made. `most` rows are asked about. A
    `ValueError` for fewer than three references, or than four rows.
    """
    if references < 3 or min(count(data), most) < 4:
        raise ValueError(
            f"expected three references and four rows or more, got {references} and {min(count(data), most)}"
        )
    x, _ = as_tensors(data, torch.randperm(count(data), generator=secret(seed, "likeness"))[:most])
    own = _alike(embedded(model, x))
    others = torch.stack([_alike(embedded(training(data, draw), x)) for draw in range(references)])

    def claim(suspect: nn.Module | Oracle) -> Claim:
        told = _alike(embedded(suspect, x))
        drawn = (others @ told).atanh()
        ahead = float((own @ told).clamp_max(1 - 1e-9).atanh() - drawn.mean())
        spread = float(drawn.std()) * math.sqrt(1 + 1 / references)
        p = float(scipy_stats.t.sf(ahead / max(spread, 1e-9), references - 1))
        return Claim(max(p, 1e-30), len(x))

    return Owned(claim)


def _alike(features: Tensor) -> Tensor:
    """How alike each two rows are, less the mean and of length 1, so that products are correlations: `(pairs,)`."""
    near = F.normalize((features - features.mean(0)).double(), dim=1)
    first, second = torch.triu_indices(len(near), len(near), offset=1)
    alike = (near @ near.T)[first, second]
    return F.normalize(alike - alike.mean(), dim=0)
