"""Activation clustering: the poisoned rows of a class are a small group of their own among its features.

Chen, Carvalho, Baracaldo, Ludwig, Edwards, Lee, Molloy and Srivastava, "Detecting backdoor attacks on deep neural
networks by activation clustering", SafeAI at AAAI 2019, https://arxiv.org/abs/1811.03728.

Differs from the paper: independent components are a rotation of whitened principal components, and neither 2-means nor
the silhouette sees a rotation, so it is not computed. The paper offers the size of the smaller cluster and the
silhouette as two ways to judge a class; here a cluster must fail both, as in the authors' toolkit (ART), because on
clean classes each alone raises false alarms. The comparison that needs a second training run is left out. No
guarantee: poison that is more than a third of its class, or a trigger that features do not separate, is missed.

Tags: atlas:AML.T0020, nist-ai-100-2:NISTAML.023, owasp-ml:ML02, cwe:506.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from buckler.data import Rows, raw
from buckler.kinds import Suspicion
from buckler.poisoning._groups import by_class, halves, principal
from buckler.poisoning._look import features
from buckler.poisoning._touch import classes

FEW = 10
"""Rows per component below which fewer components are kept."""


def activation_clustering(
    model: nn.Module,
    data: Rows,
    *,
    reduce: Literal["independent", "principal"] = "independent",
    components: int = 10,
    size: float = 0.35,
    silhouette: float = 0.15,
) -> Suspicion:
    """Score the rows of `data`, on which `model` was trained, by how clearly they belong to the smaller of two clusters
    of their class.

    `data` is `x` `(N, ...)` and `y` `(N,)`; the features are the inputs of the model's last linear layer, reduced per
    class to `components` (to a tenth of its rows, if that is less) and split by 2-means. The score is by
    how much a row is closer to the smaller cluster's centre than to the other, in squared distances, times the mean
    silhouette of the class. The smaller cluster is flagged if it has less than the share `size` of its class and the
    silhouette is above `silhouette`. Raises `ValueError` for
    one class only, fewer than one component, or a model without a linear layer.
    """
    x, y = raw(data)
    classes(y)
    if components < 1:
        raise ValueError(f"expected at least one component, got {components}")
    seen = features(model, (x, y))
    score = torch.zeros(len(y))
    flagged = torch.zeros(len(y), dtype=torch.bool)
    for _, rows in by_class(y):
        reduced = principal(seen[rows], max(1, min(components, len(rows) // FEW)), least=1e-6)
        if reduce == "independent":
            reduced = reduced / reduced.square().mean(0).sqrt()
        small, centre, other = halves(reduced)
        clear = _silhouette(reduced, small)
        nearer = (reduced - other).square().sum(1) - (reduced - centre).square().sum(1)
        score[rows] = (nearer * max(clear, 0.0)).float()
        if float(small.double().mean()) < size and clear > silhouette:
            flagged[rows] = small
    return Suspicion(score, flagged)


def _silhouette(rows: Tensor, small: Tensor) -> float:
    """The mean silhouette of `rows` `(n, d)` in two clusters; 0 where there is one cluster only."""
    if len(rows) < 3 or not bool(small.any()):
        return 0.0
    from sklearn.metrics import silhouette_score  # only here: it takes half a second to import

    return float(silhouette_score(rows.numpy(), small.numpy()))
