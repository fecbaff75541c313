"""StolenEncoder: a network that learns to give an encoder's features, to images and to views of them.

Liu, Jia, Liu and Gong, "StolenEncoder: stealing pre-trained encoders in self-supervised learning", CCS 2022,
https://arxiv.org/abs/2201.05889.

The encoder is asked about every image once. A view of the image, changed as in contrastive learning, is to have the
image's own features, because a good encoder gives it nearly those; so views cost no queries.

Differs from the paper: one view of every image at every step, which costs as much as the image itself, and none unless
`weight` is above 0, as in the paper's released scripts; features are normalised on both sides; the copy starts
untrained. A thief who knows that only the largest features are shown compares those alone (`shown`).

Tags: atlas:AML.T0024.002, atlas:AML.T0005.001, atlas:AML.T0040, nist-ai-100-2:NISTAML.031, owasp-ml:ML05.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from buckler.encoders._contrast import views
from buckler.encoders._copying import ask, begun
from buckler.kinds import Copy
from buckler.target import FeatureOracle
from buckler.train import fit

Distance = Literal["l2", "l1", "cosine"]


def stolen_encoder(
    oracle: FeatureOracle,
    pool: Tensor,
    *,
    net: Callable[[], nn.Module],
    distance: Distance = "l2",
    weight: float = 0.0,
    least: float = 0.5,
    shown: bool = False,
    epochs: float = 15,
    batch: int = 32,
    rate: float = 0.3,
    decay: float = 5e-4,
    seed: int = 0,
) -> Copy:
    """Ask about rows of `pool` `(N, C, H, W)`, uint8 or in [0, 1], each once, and train `net()` on the features.

    Features are compared by `distance` once they are normalised; with a `weight`, those of a view, a crop of at least
    the share `least`, as well. With `shown` only features that are not 0 are compared. Returns the copy, evaluating,
    with as many features as are answered. A `ValueError` for fewer than two rows or queries, or a weight below 0.
    """
    if weight < 0:
        raise ValueError(f"expected a weight of 0 or more, got {weight}")
    x = ask(oracle, pool, seed)
    answers = oracle(x)
    copy = begun(net, x, answers.shape[1], seed)
    wanted = F.normalize(answers, dim=1)
    look = views(least)

    def apart(told: Tensor, row: Tensor) -> Tensor:
        told = told * (answers[row] != 0) if shown else told
        return _apart(F.normalize(told, dim=1), wanted[row], distance)

    def loss(model: nn.Module, x: Tensor, row: Tensor) -> Tensor:
        if weight == 0:
            return apart(model(x), row)
        own, seen = model(torch.cat([x, look(x)])).chunk(2)
        return apart(own, row) + weight * apart(seen, row)

    rows = torch.arange(len(x), device=x.device)
    return fit(copy, (x, rows), loss=loss, epochs=epochs, batch=batch, rate=rate, decay=decay, seed=seed)


def _apart(a: Tensor, b: Tensor, distance: Distance) -> Tensor:
    if distance == "cosine":
        return 1 - (a * b).sum(1)
    return (a - b).norm(p=2 if distance == "l2" else 1, dim=1)
