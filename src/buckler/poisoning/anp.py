"""Adversarial neuron pruning: channels that turn against clean rows when they are disturbed are cut.

Wu and Wang, "Adversarial neuron pruning purifies backdoored deep models", NeurIPS 2021,
https://arxiv.org/abs/2110.14430.

Differs from the paper: the threshold is chosen on clean rows that are held out, as the largest that costs no more than
a budget of accuracy (the authors' comparisons choose it with the test data); the perturbation stays within its bound
after the sign step; channels whose masks tie at 0 are ordered by how long they have been there; momentum is Nesterov's.
A model without batch norm is masked at its convolutions' output channels. No guarantee: a backdoor that shares its
channels with the classes is not cut out.

Tags: atlas:AML.T0018.000, nist-ai-100-2:NISTAML.023, owasp-ml:ML10, cwe:506.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from buckler.data import Rows
from buckler.kinds import Repaired
from buckler.poisoning._dynamics import plain
from buckler.poisoning._look import outputs
from buckler.poisoning._masks import Masked, parted, pruned
from buckler.train import constant, fit, portions


def anp(
    model: nn.Module,
    clean: Rows,
    *,
    alpha: float = 0.2,
    epsilon: float = 0.4,
    steps: int = 2000,
    batch: int = 128,
    rate: float = 0.2,
    budget: float = 0.05,
    held: float = 0.3,
    seed: int = 0,
) -> Repaired:
    """Prune the channels of a copy of `model` that adversarial perturbations of the channels make harmful.

    `clean` is `x` `(N, C, H, W)` and `y` `(N,)`. Masks in [0, 1] minimise `alpha` times the loss and 1 - `alpha` times
    the loss when weights and biases of all channels are perturbed by up to `epsilon` of themselves, at random and then
    by one sign step, over `steps` batches. Channels with a mask at most a threshold are pruned: the largest threshold
    that loses at most `budget` of the accuracy on the share `held` of the rows. Returns the copy. Raises
    `ValueError` for a model with neither batch norm nor convolutions, one class, or too few rows.
    """
    used, spared = parted(clean, held, seed)
    outputs(model, used)
    masked = Masked(copy.deepcopy(model))

    def loss(_model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        masked.project()
        noise = _worst(masked, x, y, epsilon)
        return alpha * plain(masked(x), y) + (1 - alpha) * plain(masked(x, noise), y)

    epochs = steps / len(portions(len(used[1]), batch))
    fit(masked, used, loss=loss, epochs=epochs, batch=batch, rate=constant(rate), decay=0.0, seed=seed)
    masked.project()
    return pruned(model, masked, spared, budget)


def _worst(masked: Masked, x: Tensor, y: Tensor, epsilon: float) -> Tensor:
    """The perturbation `(2, channels)` of weights and biases after one sign step up the loss from a random start."""
    start = ((torch.rand(2, len(masked.mask), device=x.device) * 2 - 1) * epsilon).requires_grad_()
    (slope,) = torch.autograd.grad(plain(masked(x, start), y).mean(), start)
    return (start.detach() + epsilon * slope.sign()).clamp_(-epsilon, epsilon)
