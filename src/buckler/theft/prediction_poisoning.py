"""Prediction poisoning (MAD): scores changed so that a thief's gradient points elsewhere.

Orekondy, Schiele and Fritz, "Prediction poisoning: towards defenses against DNN model stealing attacks", ICLR 2020,
https://arxiv.org/abs/1906.10908.

Differs from the paper: of the gradient that a thief takes only that of the last layer is counted. For scores y it is
(y - p) h', p and h being the thief's own probabilities and features, and h has no part in the angle between two of
them: no derivative is taken. p are those of an untrained network, which the paper finds to serve best, or even ones
where none is given. Corners that keep the label are found by adding classes one by one; the paper goes through
all of them.

No guarantee: a thief who learns from labels loses nothing where the label is kept, and little where it is not.

Tags: atlas:AML.M0002, nist-ai-100-2:NISTAML.031, owasp-ml:ML05.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from buckler.kinds import Defended
from buckler.theft._answering import SMALLEST, first_kept
from buckler.train import started


def prediction_poisoning(
    model: nn.Module,
    *,
    epsilon: float = 0.9,
    keep_label: bool = False,
    net: Callable[[], nn.Module] | None = None,
    seed: int = 0,
) -> Defended:
    """`model` with scores y moved by at most `epsilon`, in l1, towards the corner of the simplex that turns a gradient
    most.

    `epsilon` is in [0, 2]; 2 is no limit. With `keep_label` corners are those of the scores whose label is the model's.
    `net()` is the thief's network as it begins. A `ValueError` for another `epsilon`.
    """
    if not 0 <= epsilon <= 2:
        raise ValueError(f"expected epsilon in [0, 2], got {epsilon}")
    thief = None if net is None else started(net, seed).to(next(model.parameters(), torch.empty(0)).device).eval()
    return Poisoning(model, thief, epsilon, keep_label)


class Poisoning(nn.Module):
    """The guarded model; an adaptive attack on inputs goes through `model` itself."""

    def __init__(self, model: nn.Module, thief: nn.Module | None, epsilon: float, keep_label: bool) -> None:
        super().__init__()
        self.model, self.thief, self.epsilon, self.keep_label = model, thief, epsilon, keep_label
        self.training = model.training

    def forward(self, x: Tensor) -> Tensor:
        y = self.model(x).softmax(1)
        p = torch.full_like(y, 1 / y.shape[1]) if self.thief is None else self.thief(x).softmax(1)
        corner = _kept(y, p) if self.keep_label else _turned(F.one_hot(torch.arange(y.shape[1])).to(y), y, p)
        share = (self.epsilon / (corner - y).abs().sum(1, keepdim=True).clamp_min(1e-12)).clamp_max(1)
        moved = y + share * (corner - y)
        return (first_kept(moved, y) if self.keep_label else moved).clamp_min(SMALLEST).log()

    def surrogate(self) -> nn.Module:
        return self.model


def _turned(corners: Tensor, y: Tensor, p: Tensor) -> Tensor:
    """Of `corners`, `(C, K)` or `(B, C, K)`, the one per row where the angle to the gradient of `y` is largest."""
    corners = corners.expand(len(y), *corners.shape[-2:])
    angle = F.cosine_similarity(corners - p[:, None], (y - p)[:, None], dim=2)
    return corners[torch.arange(len(y), device=y.device), angle.argmin(1)]


def _kept(y: Tensor, p: Tensor) -> Tensor:
    """The corner that keeps the label: even scores of it and of classes that are added while that turns more."""
    chosen = F.one_hot(y.argmax(1), y.shape[1]).to(y)
    for _ in range(y.shape[1] - 1):
        grown = torch.maximum(chosen[:, None], torch.eye(y.shape[1]).to(y))
        chosen = (_turned(grown / grown.sum(2, keepdim=True), y, p) > 0).to(y)
    return chosen / chosen.sum(1, keepdim=True)
