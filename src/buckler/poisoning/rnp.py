"""Reconstructive neuron pruning: what clean rows cannot bring back after unlearning belongs to the backdoor.

Li, Lyu, Ma, Koren, Lyu, Li and Jiang, "Reconstructive neuron pruning for backdoor defense", ICML 2023,
https://arxiv.org/abs/2305.14876; settings of the authors' repository, https://github.com/bboylyg/RNP.

Differs from the paper: the threshold is chosen on clean rows that are held out, as the largest that costs no more than
a budget of accuracy (the authors' comparisons choose it with the test data); the accuracy that ends unlearning is
looked at after every step, which leaves no momentum, not every epoch, so that the network is not driven further than
asked; channels whose masks tie at 0 are ordered by how long they have been there. A model without batch norm is masked
at its convolutions' output channels. No guarantee: some small networks of 8 x 8 digits kept a patch backdoor.

Tags: atlas:AML.T0018.000, nist-ai-100-2:NISTAML.023, owasp-ml:ML10, cwe:506.
"""

from __future__ import annotations

import copy
import math

import torch
from torch import Tensor, nn

from buckler.data import Rows
from buckler.kinds import Repaired
from buckler.poisoning._dynamics import plain
from buckler.poisoning._look import outputs
from buckler.poisoning._masks import Masked, parted, pruned
from buckler.train import constant, fit, lasting, portions

LOOK = 1
"""Steps of unlearning after which its accuracy is looked at."""
STEEPEST = 20.0
"""The norm that gradients are cut to while unlearning, as in the authors' code."""


def rnp(
    model: nn.Module,
    clean: Rows,
    *,
    unlearn: float = 0.01,
    stop: float = 0.2,
    unlearn_epochs: float = 20,
    recover: float = 0.2,
    recover_epochs: float = 20,
    batch: int = 128,
    budget: float = 0.05,
    held: float = 0.3,
    seed: int = 0,
) -> Repaired:
    """Prune the channels of a copy of `model` that stay masked when clean rows are unlearnt and then recovered.

    `clean` is `x` `(N, C, H, W)` and `y` `(N,)`. A second copy climbs their loss at the rate `unlearn` until its
    accuracy, in training mode, is at most `stop`, or for `unlearn_epochs`; masks in [0, 1] over its channels then
    descend the loss at the rate `recover`. Channels with a mask at most a threshold are pruned in the first copy: the
    largest threshold that loses at most `budget` of the accuracy on the share `held` of the rows. Returns that
    copy. Raises `ValueError` for a model with neither batch norm nor convolutions, one class, too few rows, or a rate
    at which the loss overflows.
    """
    lasting(unlearn_epochs, recover_epochs)
    used, spared = parted(clean, held, seed)
    outputs(model, used)
    masked = Masked(_unlearnt(copy.deepcopy(model), used, unlearn, stop, unlearn_epochs, batch, seed))

    def loss(_model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        masked.project()
        return plain(masked(x), y)

    fit(masked, used, loss=loss, epochs=recover_epochs, batch=batch, rate=constant(recover), decay=0.0, seed=seed)
    masked.project()
    return pruned(model, masked, spared, budget)


def _unlearnt(
    model: nn.Module, rows: Rows, rate: float, stop: float, epochs: float, batch: int, seed: int
) -> nn.Module:
    """Climb the loss of `rows` in place, `LOOK` steps at a time, until at most the share `stop` is answered rightly."""
    right: list[Tensor] = []

    def climb(moving: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        answers = moving(x)
        right.append((answers.argmax(1) == y).float())
        weights = [weight for weight in moving.parameters() if weight.requires_grad]
        slopes = torch.autograd.grad(-plain(answers, y).mean(), weights, allow_unused=True, materialize_grads=True)
        steepness = torch.stack([slope.norm() for slope in slopes]).norm()
        short = (STEEPEST / (steepness + 1e-12)).clamp_max(1)
        return torch.stack(
            [(weight * short * slope).sum() for weight, slope in zip(weights, slopes, strict=True)]
        ).sum()

    part = min(1.0, LOOK / len(portions(len(rows[1]), batch)))
    for turn in range(math.ceil(epochs / part)):
        right.clear()
        fit(model, rows, loss=climb, epochs=part, batch=batch, rate=constant(rate), seed=seed + turn)
        if float(torch.cat(right).mean()) <= stop:
            break
    return model
