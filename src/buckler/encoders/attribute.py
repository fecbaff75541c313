"""Attribute: what an image's features tell of it that nobody asked for, by a probe that learnt from labelled features.

Song and Shmatikov, "Overlearning reveals sensitive attributes", ICLR 2020, https://arxiv.org/abs/1905.11742; Song and
Raghunathan, "Information leakage in embedding models", CCS 2020, https://arxiv.org/abs/2004.00053.

The adversary sees features, and asks for those of images of their own, of which they know the attribute.

Differs from the paper: a linear probe, or with `inner` units one layer above, of features brought to mean 0 and
deviation 1.

Tags: atlas:AML.T0024, atlas:AML.T0040, nist-ai-100-2:NISTAML.037.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from buckler.data import Rows
from buckler.embedding import Probe, embedded
from buckler.kinds import Guessed
from buckler.target import FeatureOracle
from buckler.train import fit, started


def attribute(
    oracle: FeatureOracle,
    features: Tensor,
    *,
    known: Rows,
    values: int,
    inner: int = 64,
    epochs: float = 20,
    rate: float = 0.02,
    seed: int = 0,
) -> Guessed:
    """Score each of so many `values` that the attribute of the images of `features` `(B, D)` may have.

    `known` are images `(N, C, H, W)` in [0, 1] of the adversary's own and their values `(N,)`, from 0. A network of
    `inner` units (0 for none between) learns for `epochs` at `rate`, drawn by `seed`. Returns `attribute` `(B, V)`,
    log-probabilities. Raises `ValueError` for values that are none, and features of another width than the oracle's.
    """
    x, which = known[0], known[1].cpu()
    if values < 2 or not len(which) or int(which.min()) < 0 or int(which.max()) >= values:
        raise ValueError(f"expected two values or more, and known ones from 0 to {values - 1}, got {values}")
    seen = embedded(oracle, x)
    if features.ndim != 2 or features.shape[1] != seen.shape[1]:
        raise ValueError(f"expected features (B, {seen.shape[1]}), as the oracle gives them, got {features.shape}")
    model = started(lambda: _guesser(seen, values, inner), seed)
    fit(model, (seen, which), epochs=epochs, batch=64, rate=rate, decay=1e-3, seed=seed)
    with torch.no_grad():
        return {"attribute": model(features.cpu()).log_softmax(1)}


def _guesser(seen: Tensor, values: int, inner: int) -> nn.Module:
    if not inner:
        return Probe(seen, values)
    return nn.Sequential(Probe(seen, inner), nn.ReLU(), nn.Linear(inner, values))
