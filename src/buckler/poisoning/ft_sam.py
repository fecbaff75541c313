"""FT-SAM: fine-tuning that looks for flat minima, and moves the large weights of a backdoor to find them.

Zhu, Wei, Shen, Fan and Wu, "Enhancing fine-tuning based backdoor defense with sharpness-aware minimization", ICCV 2023,
https://arxiv.org/abs/2304.11823.

Differs from the paper: momentum is Nesterov's. Settings that the paper leaves open are those of the authors'
BackdoorBench: every weight's own size scales its perturbation, and batch-norm statistics are not taken from perturbed
passes. No guarantee.

Tags: atlas:AML.T0018.000, nist-ai-100-2:NISTAML.023, owasp-ml:ML10, cwe:506.
"""

from __future__ import annotations

import copy
from typing import cast

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from buckler.data import Rows, raw
from buckler.kinds import Repaired
from buckler.poisoning._look import outputs
from buckler.poisoning._touch import classes
from buckler.train import LossPerRow, cosine, fit


def ft_sam(
    model: nn.Module,
    clean: Rows,
    *,
    radius: float = 2.0,
    smoothing: float = 0.1,
    epochs: float = 100,
    batch: int = 256,
    rate: float = 0.01,
    seed: int = 0,
) -> Repaired:
    """Fine-tune a copy of `model` on clean rows with adaptive sharpness-aware minimisation.

    `clean` is `x` `(N, ...)` and `y` `(N,)`. Every step follows the gradient at the weights that raise the loss most
    within `radius`, where each weight counts by its own size; labels are smoothed by `smoothing`. Returns the copy,
    evaluating. Raises `ValueError` for rows of one class, or labels that the
    model does not have.
    """
    rows = raw(clean)
    classes(rows[1])
    outputs(model, rows)
    loss = _sharpened(radius, smoothing)
    return fit(copy.deepcopy(model), rows, loss=loss, epochs=epochs, batch=batch, rate=cosine(rate), seed=seed)


def _sharpened(radius: float, smoothing: float) -> LossPerRow:
    """The loss per row at w + radius * w^2 g / |w g|, as a function of w whose gradient is that at the point itself."""

    def loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        moving = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
        here = F.cross_entropy(model(x), y, label_smoothing=smoothing)
        slopes = torch.autograd.grad(here, list(moving.values()), allow_unused=True, materialize_grads=True)
        both = [(name, weight, slope) for (name, weight), slope in zip(moving.items(), slopes, strict=True)]
        steepness = torch.stack([(weight.detach() * slope).norm() for _, weight, slope in both]).norm()
        climb = radius / (steepness + 1e-12)
        lifted = {name: weight + climb * weight.detach().square() * slope for name, weight, slope in both}
        spare = {name: buffer.clone() for name, buffer in model.named_buffers()}  # statistics are written there
        answers = cast(Tensor, functional_call(model, {**lifted, **spare}, (x,)))
        return F.cross_entropy(answers, y, label_smoothing=smoothing, reduction="none")

    return loss
