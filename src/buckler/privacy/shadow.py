"""Shadow models: a network learns what answers to members look like from models whose members are known.

Shokri, Stronati, Song and Shmatikov, "Membership inference attacks against machine learning models", S&P 2017,
https://arxiv.org/abs/1610.05820.

Differs from the paper: one attack network sees the label beside the answers, where the paper has one for each class;
and it sees log-probabilities, the label's confidence apart. What a single row is like is not known to it, which is what
LiRA adds.

Tags: atlas:AML.T0024.000, nist-ai-100-2:NISTAML.033, owasp-ml:ML04.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from buckler.kinds import Membership
from buckler.privacy._shadows import Shadows, answers_of, confidence
from buckler.target import ScoreOracle
from buckler.train import fit, started

MOST = 100_000
"""How many answers of shadows the attack network learns from, at most."""


def shadow(
    oracle: ScoreOracle,
    x: Tensor,
    y: Tensor,
    *,
    shadows: Shadows,
    width: int = 64,
    epochs: float = 10,
    batch: int = 256,
    rate: float = 0.003,
    seed: int = 0,
) -> Membership:
    """Score rows by the log-odds that an attack network gives the target's answers of being to a member.

    `x` `(B, ...)` in [0, 1] and `y` `(B,)` are the rows that the `shadows` were asked about, in their order; the first
    view of each is used. The network, of one hidden layer of `width`, is trained by Adam on what shadows with and
    without each row answered. Returns float64 `(B,)`. Raises `ValueError` for other rows.
    """
    shadows.fit(x)
    known = torch.cat([_features(answers[:, :1], shadows.labels) for answers in shadows.answers])
    member = shadows.held.flatten().long()
    chosen = torch.randperm(len(known), generator=torch.Generator().manual_seed(seed))[:MOST]
    middle, spread = known[chosen].mean(0), known[chosen].std(0).clamp_min(1e-6)
    attack = started(partial(_network, known.shape[1], width), seed)
    lesson = (known[chosen] - middle) / spread, member[chosen]
    fit(attack, lesson, loss=_log_loss, epochs=epochs, batch=batch, rate=rate, optimizer="adam", decay=0.0, seed=seed)
    seen = (_features(answers_of(oracle, x, 1), y.cpu()) - middle) / spread
    with torch.no_grad():
        return attack(seen).squeeze(1).double()


def _features(answers: Tensor, y: Tensor) -> Tensor:
    """What the network sees of answers `(N, 1, K)`: the label's confidence, all log-probabilities, and the label."""
    log = answers.squeeze(1).clamp_min(-50).float()
    own = confidence(answers, y).clamp(-100, 100).float()
    return torch.cat([own, log, F.one_hot(y, log.shape[1]).float()], 1)


def _network(features: int, width: int) -> nn.Module:
    return nn.Sequential(nn.Linear(features, width), nn.ReLU(), nn.Linear(width, 1))


def _log_loss(model: nn.Module, x: Tensor, member: Tensor) -> Tensor:
    return F.binary_cross_entropy_with_logits(model(x).squeeze(1), member.float(), reduction="none")
