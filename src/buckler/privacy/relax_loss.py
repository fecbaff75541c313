"""RelaxLoss: the loss is kept at a level above zero, so that members are answered as other rows are.

Chen, Yu and Fritz, "RelaxLoss: defending membership inference attacks without losing utility", ICLR 2022,
https://arxiv.org/abs/2207.05801.

A batch whose mean loss is below the level is not learnt from any further. In every other epoch it is climbed out of
(gradient ascent); in the rest, what a label's probability leaves over is shared by the other classes alike (posterior
flattening), which widens the spread of losses and keeps answers right.

Differs from the paper: none in the rule; the level is to be chosen for the data, below the loss of a model that knows
nothing, log K. No guarantee: the loss of members is moved to that of other rows on average, and not row by row.

Tags: atlas:AML.T0024.000, nist-ai-100-2:NISTAML.033, owasp-ml:ML04.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import count

from torch import Tensor, nn
from torch.nn import functional as F

from buckler.data import Rows
from buckler.kinds import Protected
from buckler.train import LossPerRow, fit, portions, started


def relax_loss(
    data: Rows,
    *,
    net: Callable[[], nn.Module],
    level: float = 0.5,
    epochs: float = 15,
    batch: int = 64,
    rate: float = 0.1,
    seed: int = 0,
) -> Protected:
    """Train a network on `data`, `x` `(N, ...)` and `y` `(N,)`, towards a mean loss of `level` in place of 0.

    The paper takes 1 for CIFAR-10, 3 for CIFAR-100. Returns it, and promises nothing. Raises `ValueError` for a level
    below 0, or endless.
    """
    if not 0 <= level < math.inf:
        raise ValueError(f"expected a level of 0 or more, got {level}")
    loss = _relaxed(level, len(portions(len(data[1]), batch)))
    return Protected(fit(started(net, seed), data, loss=loss, epochs=epochs, batch=batch, rate=rate, seed=seed))


def _relaxed(level: float, steps: int) -> LossPerRow:
    """The loss of one training, with so many `steps` in an epoch: it counts its calls."""
    calls = count()

    def loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        even = next(calls) // steps % 2 == 0
        out = model(x)
        losses = F.cross_entropy(out, y, reduction="none")
        if float(losses.detach().mean()) >= level:
            return losses
        return -losses if even else F.cross_entropy(out, _flattened(out, y), reduction="none")

    return loss


def _flattened(out: Tensor, y: Tensor) -> Tensor:
    """Probabilities `(B, K)` that leave the label's own as it is, and give all other classes the same."""
    own = out.detach().softmax(1).gather(1, y[:, None])
    return ((1 - own) / (out.shape[1] - 1)).expand_as(out).scatter(1, y[:, None], own)
