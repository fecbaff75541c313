"""Cont-Steal: a network whose features of an image are nearer to the encoder's than to those of all other images.

Sha, He, Yu, Backes and Zhang, "Can't steal? Cont-Steal! Contrastive stealing attacks against image encoders", CVPR
2023, https://arxiv.org/abs/2201.07513.

Differs from the paper: the encoder is asked about every image once, as it is, and not about a new view at every step,
so that queries can be counted as StolenEncoder's are; with `least` below 1 the copy sees views. The copy starts
untrained.

Tags: atlas:AML.T0024.002, atlas:AML.T0005.001, atlas:AML.T0040, nist-ai-100-2:NISTAML.031, owasp-ml:ML05.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from buckler.encoders._contrast import views
from buckler.encoders._copying import ask, begun
from buckler.kinds import Copy
from buckler.target import FeatureOracle
from buckler.train import fit


def cont_steal(
    oracle: FeatureOracle,
    pool: Tensor,
    *,
    net: Callable[[], nn.Module],
    temperature: float = 0.1,
    least: float = 1.0,
    epochs: float = 15,
    batch: int = 32,
    rate: float = 0.1,
    decay: float = 5e-4,
    seed: int = 0,
) -> Copy:
    """Ask about rows of `pool` `(N, C, H, W)`, uint8 or in [0, 1], each once, and train `net()` on the features.

    The copy's features of a row, at `temperature` and by their cosine, are to be told to be the encoder's of the same
    row, among the encoder's and the copy's own of all rows of the batch. Views are crops of at least the share `least`;
    at 1 the row itself is seen. Returns the copy, evaluating, with as many features as are answered. A `ValueError` for
    fewer than two rows or queries.
    """
    x = ask(oracle, pool, seed)
    answers = F.normalize(oracle(x), dim=1)
    copy = begun(net, x, answers.shape[1], seed)
    look = views(least) if least < 1 else None

    def loss(model: nn.Module, x: Tensor, row: Tensor) -> Tensor:
        return _contrasted(F.normalize(model(x if look is None else look(x)), dim=1), answers[row], temperature)

    rows = torch.arange(len(x), device=x.device)
    return fit(copy, (x, rows), loss=loss, epochs=epochs, batch=batch, rate=rate, decay=decay, seed=seed)


def _contrasted(copied: Tensor, answers: Tensor, temperature: float) -> Tensor:
    """How badly each of `copied` `(B, D)` is told to be that of its `answers` `(B, D)`, both normalised: `(B,)`."""
    others = (copied @ copied.T / temperature).fill_diagonal_(-torch.inf)
    scores = torch.cat([copied @ answers.T / temperature, others], 1)
    return F.cross_entropy(scores, torch.arange(len(copied), device=copied.device), reduction="none")
