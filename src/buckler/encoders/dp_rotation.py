"""Differentially private pre-training: by which quarter an image was turned, learnt by DP-SGD.

Abadi, Chu, Goodfellow, McMahan, Mironov, Talwar and Zhang, "Deep learning with differential privacy", CCS 2016,
https://arxiv.org/abs/1607.00133; the task is that of Gidaris, Singh and Komodakis (RotNet), "Unsupervised
representation learning by predicting image rotations", ICLR 2018, https://arxiv.org/abs/1803.07728.

Noise hides one row only if that row changes little. The loss of contrastive learning compares the rows of a batch, so
that one row shows in the gradients of all others; which way an image was turned is asked of every row by itself. One
row more in a batch adds one gradient of at most `clip` to the sum, and nothing else changes, whatever was drawn for the
others: a step is the Gaussian mechanism of sensitivity `clip` on rows of which each is taken by a coin of its own,
which is what the accountant composes.

Differs from the papers: one turn of every row in a step, not four; batch norms become group norms; and what is said of
`privacy/dp_sgd`. Private masked autoencoders (Yu et al., ViP, ICML 2024, https://arxiv.org/abs/2306.08842) and private
contrast (Kong, Munoz Medina and Ribero, ICLR 2025, https://arxiv.org/abs/2310.03104) need many more rows.

Guarantees (epsilon, delta)-differential privacy of the encoder for one row added or removed, in exact arithmetic, if
nobody who is not to be trusted knows or guesses the seed. How many rows there are is taken to be public. Choosing
between trainings by their results on the same rows is not accounted for. An image that is there several times, or of
one person many, is protected that many times less.

Tags: atlas:AML.T0024.000, nist-ai-100-2:NISTAML.033, owasp-ml:ML04.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from buckler.accountant import calibrated, usual_delta
from buckler.data import Rows, count
from buckler.encoders._contrast import begun
from buckler.kinds import Encoder
from buckler.nets import where
from buckler.private import Private, apart, measurable, rowwise
from buckler.train import fit, started, steps

TURNS = 4


def dp_rotation(
    data: Rows,
    *,
    net: Callable[[], nn.Module],
    epsilon: float = 8.0,
    delta: float | None = None,
    clip: float = 1.0,
    epochs: float = 8,
    batch: int = 800,
    rate: float = 0.5,
    seed: int = 0,
) -> Encoder:
    """Train the encoder `net()` on the square images of `data` `(N, C, H, H)`, uint8 or in [0, 1], so that no row shows
    by more than (epsilon, delta); labels are not looked at.

    `delta` is N^-1.1 if not given. `clip` is the greatest norm of a row's gradient, `batch` the rows of a batch on
    average. The network's batch norms become group norms; without epochs it is returned as it began. Returns the
    encoder, evaluating: features `(B, D)`. A `ValueError` for what is no square image, an encoder that gives no matrix,
    an epsilon or a clip not above 0, a delta outside (0, 1), a network whose answer to a row depends on others or on
    chance but dropout, or whose buffers change with rows, and without Opacus or dp-accounting.
    """
    many = count(data)
    delta = usual_delta(many) if delta is None else delta
    batch = min(batch, many)
    if not (all(0 < knob < math.inf for knob in (epsilon, clip)) and 0 < delta < 1):
        raise ValueError(
            f"expected epsilon and clip above 0, and delta between 0 and 1, got {epsilon:g}, {clip:g} and {delta:g}"
        )
    body, wide = begun(lambda: rowwise(started(net, seed)), data, seed)
    if data[0].shape[2] != data[0].shape[3]:
        raise ValueError(f"expected square images, which can be turned, got {tuple(data[0].shape[1:])}: crop them")
    model = started(lambda: nn.Sequential(body, nn.Linear(wide, TURNS)), seed).to(where(body)).train()
    if total := steps(many, batch, epochs):
        ghost = measurable(model, data[0])
        noise, _ = calibrated(epsilon, delta, batch / many, total)
        private = Private(clip, noise, _turned, ghost)
        fit(model, data, loss=private, epochs=epochs, batch=batch, rate=rate, decay=0.0, seed=apart(seed))
    return body.eval()


def _turned(model: nn.Module, x: Tensor, _: Tensor) -> Tensor:
    """How badly `model` tells by how many quarters each row, turned by chance, was: `(B,)`."""
    turns = torch.randint(TURNS, (len(x),), device=x.device)
    shown = torch.stack([x.rot90(turn, (2, 3)) for turn in range(TURNS)])[turns, torch.arange(len(x), device=x.device)]
    return F.cross_entropy(model(shown), turns, reduction="none")
