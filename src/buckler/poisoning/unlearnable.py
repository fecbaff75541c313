"""Unlearnable examples: error-minimising noise, from which a model learns that there is nothing left to learn.

Huang, Ma, Erfani, Bailey and Wang, "Unlearnable examples: making personal data unexploitable", ICLR 2021,
https://arxiv.org/abs/2101.04898.

Differs from the paper: every step of the noise is taken for all rows before the next one, so that a class's noise sees
all of the class; the number of rounds is bounded; the noise starts at nothing. A model that is trained adversarially
learns what the noise was to hide.

Tags: atlas:AML.T0020, atlas:AML.T0059, nist-ai-100-2:NISTAML.013, owasp-ml:ML02.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn

from buckler.data import Poisoned, Rows, floats
from buckler.poisoning._look import BATCH, outputs, where
from buckler.poisoning._nudge import uphill
from buckler.poisoning._touch import CHUNK, changed, chosen, classes, counted, images
from buckler.target import frozen
from buckler.threat import Share
from buckler.train import constant, fit, portions, started

ALL = Share(1.0)
TRAINED_AT_ONCE = 128


def unlearnable(
    data: Rows,
    *,
    net: Callable[[], nn.Module],
    share: Share = ALL,
    noise: Literal["samplewise", "classwise"] = "samplewise",
    radius: float = 8 / 255,
    rounds: int = 20,
    train_steps: int = 10,
    noise_steps: int = 20,
    error: float = 0.01,
    rate: float = 0.1,
    seed: int = 0,
) -> Poisoned:
    """Add noise within linf `radius` that makes rows so easy that nothing is learnt from them.

    `data` is `x` `(N, C, H, W)` and `y` `(N,)`. In turn, a network from `net` is trained on the noisy rows for
    `train_steps` batches at `rate`, and the noise takes `noise_steps` signed steps of `radius` / 10 down the network's
    loss: one noise per row, or one per class. It ends when at most the share `error` of the noisy rows is answered
    wrongly, or after `rounds`. Labels stay; there is no trigger and no prey: the model is to be wrong on clean inputs.
    Returns `Poisoned`. Raises `ValueError` for one class or knobs out of range.
    """
    x, y = images(data)
    classes(y)
    if not 0 < radius <= 1 or min(rounds, train_steps, noise_steps) < 1 or not 0 <= error < 1:
        raise ValueError(
            "expected a radius above 0 and at most 1, at least one round and step, and an error of at least 0 and "
            f"below 1, got {radius}, {rounds}, {train_steps}, {noise_steps} and {error}"
        )
    if noise not in ("samplewise", "classwise"):
        raise ValueError(f"expected noise samplewise or classwise, got {noise!r}")
    rows = chosen(torch.ones_like(y, dtype=torch.bool), counted(share, y), seed)
    clean, labels = floats(x[rows]), y[rows]
    owner = torch.arange(len(labels)) if noise == "samplewise" else labels.unique(return_inverse=True)[1]
    added = clean.new_zeros(int(owner.max()) + 1, *clean.shape[1:])
    model = started(net, seed)
    outputs(model, (x, y))
    epochs = train_steps / len(portions(len(labels), TRAINED_AT_ONCE))
    for turn in range(rounds):
        noisy = (clean + added[owner]).clamp(0, 1)
        fit(model, (noisy, labels), epochs=epochs, batch=TRAINED_AT_ONCE, rate=constant(rate), seed=seed + turn)
        wrong = 1.0
        for _ in range(noise_steps):
            upwards, wrong = _looked(model, clean, added, labels, owner)
            added = (added - radius / 10 * upwards.sign()).clamp(-radius, radius)
        if wrong <= error:
            break
    parts = iter(added[owner].split(CHUNK))
    return Poisoned(changed(x, rows, lambda held: held + next(parts).to(held)), y, rows, y)


def _looked(model: nn.Module, clean: Tensor, added: Tensor, labels: Tensor, owner: Tensor) -> tuple[Tensor, float]:
    """Up which way the loss of the noisy rows goes, summed over the rows of a noise, and the share answered wrongly."""
    upwards, wrong = torch.zeros_like(added), 0
    with frozen(model):
        for part in torch.arange(len(labels)).split(BATCH):
            noisy = (clean[part] + added[owner[part]]).clamp(0, 1).to(where(model))
            gradient, logits = uphill(model, noisy, labels[part].to(where(model)))
            upwards.index_add_(0, owner[part], gradient.to(added))
            wrong += int((logits.argmax(1).cpu() != labels[part].cpu()).sum())
    return upwards, wrong / len(labels)
