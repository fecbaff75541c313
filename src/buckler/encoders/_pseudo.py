"""A task of the adversary's own: which group an input's features are in. What takes inputs out of their groups crosses
what classifiers above the encoder tell apart, though none of them is known."""

from __future__ import annotations

import torch
from sklearn.cluster import KMeans
from torch import Tensor, nn

from buckler.embedding import Probed, embedded, probe
from buckler.nets import where


def grouped(encoder: nn.Module, pool: Tensor, groups: int, seed: int) -> Probed:
    """The classifier that a linear probe makes of `encoder`, learnt from the `groups` that k-means makes of the
    features, each of deviation 1, of `pool` `(N, ...)`. A `ValueError` for one group, and more of them than inputs."""
    if not 2 <= groups <= len(pool):
        raise ValueError(f"expected 2 groups or more, and an input of `pool` for each, got {groups} and {len(pool)}")
    features = embedded(encoder, pool)
    spread = features.std(0, correction=0)
    scaled = ((features - features.mean(0)) / torch.where(spread > 1e-6, spread, 1.0)).numpy()
    group = torch.from_numpy(KMeans(groups, random_state=seed % 2**32).fit_predict(scaled)).long()
    return Probed(encoder, probe(features, group, classes=groups, seed=seed).to(where(encoder))).eval()
