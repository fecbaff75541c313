"""Quantile regression: how sure would the model be of such a row, had it not learnt from it?

Bertran, Tang, Roth, Kearns, Morgenstern and Wu, "Scalable membership inference attacks via quantile regression",
NeurIPS 2023, https://arxiv.org/abs/2307.03694.

No shadow models: one regressor learns, from rows that nobody learnt from, the distribution of the target's confidence
given the row. Differs from the paper: the distribution is normal, of which the regressor gives mean and spread (one of
the paper's two forms), so that the score is the same at every share of false alarms; and the regressor is a small
network of pixels and label, not a pretrained one, which knows little of rows that are not simple pictures.

Tags: atlas:AML.T0024.000, nist-ai-100-2:NISTAML.033, owasp-ml:ML04.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from buckler.data import Rows, as_tensors
from buckler.kinds import Membership
from buckler.privacy._shadows import answers_of, confidence
from buckler.target import ScoreOracle
from buckler.train import fit, started

NARROWEST = 0.05
"""The least spread, of that of all confidences: a regressor that knows its few rows by heart is not sure of others."""


def quantile(
    oracle: ScoreOracle,
    x: Tensor,
    y: Tensor,
    *,
    public: Rows,
    width: int = 64,
    epochs: float = 30,
    batch: int = 64,
    rate: float = 0.003,
    decay: float = 1e-3,
    seed: int = 0,
) -> Membership:
    """Score rows by how many spreads the target's confidence is above what is expected of such a row.

    `x` `(B, ...)` in [0, 1], `y` `(B,)`; `public` are rows alike that the target did not learn from. One query per row,
    public ones included. Returns float64 `(B,)`. Raises `ValueError` for no public rows.
    """
    rows, labels = as_tensors(public)
    classes = int(max(int(labels.max()), int(y.max()))) + 1
    sure = confidence(answers_of(oracle, rows.to(x.device), 1), labels).squeeze(1)
    middle, scale = float(sure.mean()), max(float(sure.std()), 1e-6) if len(sure) > 1 else 1.0
    goal = ((sure - middle) / scale).float()
    seen = _features(rows, labels, classes)
    regressor = started(partial(_network, seen.shape[1], width), seed)

    def loss(model: nn.Module, given: Tensor, places: Tensor) -> Tensor:
        mean, spread = _normal(model, given)
        return 0.5 * ((goal[places] - mean) / spread).square() + spread.log()

    lesson = seen, torch.arange(len(seen))
    fit(regressor, lesson, loss=loss, epochs=epochs, batch=batch, rate=rate, optimizer="adam", decay=decay, seed=seed)
    with torch.no_grad():
        mean, spread = _normal(regressor, _features(x.cpu(), y.cpu(), classes))
    target = confidence(answers_of(oracle, x, 1), y.cpu()).squeeze(1)
    return ((target - middle) / scale - mean.double()) / spread.double()


def _features(x: Tensor, y: Tensor, classes: int) -> Tensor:
    return torch.cat([x.flatten(1).float() - 0.5, F.one_hot(y, classes).float()], 1)


def _network(features: int, width: int) -> nn.Module:
    return nn.Sequential(nn.Linear(features, width), nn.ReLU(), nn.Linear(width, 2))


def _normal(model: nn.Module, given: Tensor) -> tuple[Tensor, Tensor]:
    out = model(given)
    return out[:, 0], NARROWEST + F.softplus(out[:, 1])
