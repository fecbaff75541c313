"""Semi-supervised training: the labels of trusted rows are learnt, of all other rows only the images.

MixMatch: Berthelot, Carlini, Goodfellow, Papernot, Oliver and Raffel, NeurIPS 2019, https://arxiv.org/abs/1905.02249.
FixMatch: Sohn, Berthelot, Li, Zhang, Carlini, Cubuk, Kurakin, Zhang and Raffel, NeurIPS 2020,
https://arxiv.org/abs/2001.07685.

Differs from the papers: the labelled and the unlabelled rows of a step go through the network as one batch, so that
batch norm sees both at once, which is what the authors interleave batches for; no moving average of the weights.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from buckler.augment import Augment, chained, erased, shifted
from buckler.data import Rows, floats
from buckler.poisoning._look import logits as answers
from buckler.poisoning._look import where
from buckler.train import SMALL, constant, fit, lasting

MOVED: Augment = shifted(2)
"""The weak augmentation: by up to two pixels each way, which suits gray images of any kind."""
COVERED: Augment = chained(shifted(4), erased(8), erased(8))
"""The strong augmentation, for images of about 28 pixels."""
Trusted = Tensor | Callable[[int], Tensor]
"""Which rows keep their labels, `(N,)` booleans; or a function that says so anew as every epoch 0, 1, ... starts."""


@dataclass(frozen=True)
class Mixing:
    """MixMatch's constants: sharpening, the Beta distribution of MixUp, the unlabelled loss's weight and its ramp.

    The weight rises linearly over `ramp` epochs, of which `done` were trained before (a caller that splits the rows
    anew every epoch and calls again counts them here).
    """

    temperature: float = 0.5
    alpha: float = 0.75
    weight: float = 15.0
    ramp: float = 190.0
    done: float = 0.0

    def at(self, epoch: float) -> float:
        """The unlabelled loss's weight `epoch` epochs into this call."""
        return self.weight * min(1.0, (self.done + epoch) / self.ramp) if self.ramp > 0 else self.weight


@dataclass(frozen=True)
class Fixing:
    """FixMatch's constants: the confidence that makes a pseudo-label, the unlabelled loss's weight, and how many
    unlabelled rows there are to a labelled one."""

    threshold: float = 0.95
    weight: float = 1.0
    ratio: int = 7


class _Turns:
    """Rows in turn: drawn without replacement, then all over again, from the global random state."""

    def __init__(self, chosen: Tensor) -> None:
        self._rows = chosen.nonzero().squeeze(1)
        self._left = self._rows[:0]

    def __len__(self) -> int:
        return len(self._rows)

    def draw(self, many: int) -> Tensor:
        while len(self._left) < many and len(self._rows) > 0:
            order = torch.randperm(len(self._rows), device=self._rows.device)
            self._left = torch.cat([self._left, self._rows[order]])
        out, self._left = self._left[:many], self._left[many:]
        return out


class _Pools:
    """The labelled and the unlabelled rows of every step; `iterations` steps make an epoch, and a new split.

    Labels are read of trusted rows only.
    """

    def __init__(self, data: Rows, trusted: Trusted, iterations: int, device: torch.device) -> None:
        x, y = data
        if len(x) != len(y):
            raise ValueError(f"expected one label per row, got {len(x)} rows and {len(y)} labels")
        self._x, self._y = (x.to(device) if x.nbytes <= SMALL else x), y.to(device)
        self._trusted, self._iterations, self._device = trusted, iterations, device
        self._step = 0
        self._labelled = self._unlabelled = _Turns(torch.zeros(0, dtype=torch.bool))

    def draw(self, labelled: int, unlabelled: int) -> tuple[Tensor, Tensor, Tensor, float]:
        """Labelled images and their labels, unlabelled images (none if all rows are trusted), and the epoch so far."""
        if self._step % self._iterations == 0:
            self._split(self._step // self._iterations)
        epoch = self._step / self._iterations
        self._step += 1
        rows = self._labelled.draw(labelled)
        return self._taken(rows), self._y[rows], self._taken(self._unlabelled.draw(unlabelled)), epoch

    def _split(self, epoch: int) -> None:
        trusted = self._trusted if isinstance(self._trusted, Tensor) else self._trusted(epoch)
        if trusted.dtype != torch.bool or trusted.shape != self._y.shape or not bool(trusted.any()):
            raise ValueError(
                f"expected booleans ({len(self._y)},) with at least one trusted row, "
                f"got {tuple(trusted.shape)} of {trusted.dtype} with {int(trusted.sum())}"
            )
        trusted = trusted.to(self._device)
        self._labelled, self._unlabelled = _Turns(trusted), _Turns(~trusted)

    def _taken(self, rows: Tensor) -> Tensor:
        return floats(self._x[rows.to(self._x.device)].to(self._device))


def mixmatch(
    model: nn.Module,
    data: Rows,
    trusted: Trusted,
    *,
    epochs: float,
    batch: int = 64,
    iterations: int | None = None,
    mixing: Mixing = Mixing(),
    augment: Augment = MOVED,
    rate: float | Callable[[float], float] = 2e-3,
    optimizer: Literal["sgd", "adam"] = "adam",
    seed: int = 0,
) -> nn.Module:
    """Train `model` in place by MixMatch on `data`, `x` `(N, C, H, W)` and `y` `(N,)`; return it, evaluating.

    A step draws `batch` labelled rows out of `trusted` and `batch` unlabelled ones out of the rest, whose labels are
    never read; two augmentations of an unlabelled row share one guess, the sharpened mean of the model's answers; all
    are mixed by MixUp. An epoch is `iterations` steps, as many as pass over N rows if not given. A `rate` that is a
    number stays the same throughout. With every row trusted this is MixUp. Raises `ValueError` where no row is.
    """
    steps = _paced(len(data[1]), batch, iterations, epochs)
    pools = _Pools(data, trusted, steps, where(model))
    classes = answers(model, (data[0][:1], data[1][:1])).shape[1]

    def loss(moving: nn.Module, _x: Tensor, _y: Tensor) -> Tensor:
        known, labels, other, epoch = pools.draw(batch, batch)
        images = torch.cat([augment(known), augment(other), augment(other)] if len(other) else [augment(known)])
        wanted = F.one_hot(labels, classes).to(images.dtype)
        if len(other):
            guess = _guessed(moving, images[batch:], mixing.temperature)
            wanted = torch.cat([wanted, guess, guess])
        mixed, wanted = mixup(images, wanted, mixing.alpha)
        logits = moving(mixed)
        said = -(wanted[:batch] * logits[:batch].log_softmax(1)).sum(1).mean()
        if not len(other):
            return said
        return said + mixing.at(epoch) * (logits[batch:].softmax(1) - wanted[batch:]).square().mean()

    return _fitted(model, loss, round(epochs * steps), rate, optimizer, seed)


def fixmatch(
    model: nn.Module,
    data: Rows,
    trusted: Trusted,
    *,
    epochs: float,
    batch: int = 64,
    iterations: int | None = None,
    fixing: Fixing = Fixing(),
    augment: Augment = MOVED,
    strong: Augment = COVERED,
    rate: float | Callable[[float], float] | None = None,
    seed: int = 0,
) -> nn.Module:
    """Train `model` in place by FixMatch on `data`, `x` `(N, C, H, W)` and `y` `(N,)`; return it, evaluating.

    Rows as in `mixmatch`, with more unlabelled rows to a step. What the model says of a weakly augmented unlabelled
    row, if it is sure enough, is the label of the same row strongly augmented. SGD; the `rate` is the paper's if not
    given, 0.03 falling along 7/16 of a cosine. Raises `ValueError` where no row is trusted.
    """
    steps = _paced(len(data[1]), batch, iterations, epochs)
    pools = _Pools(data, trusted, steps, where(model))

    def loss(moving: nn.Module, _x: Tensor, _y: Tensor) -> Tensor:
        known, labels, other, _ = pools.draw(batch, fixing.ratio * batch)
        images = [augment(known), augment(other), strong(other)] if len(other) else [augment(known)]
        logits = moving(torch.cat(images))
        said = F.cross_entropy(logits[:batch], labels)
        if not len(other):
            return said
        weak, moved = logits[batch:].chunk(2)
        sure, guess = weak.detach().softmax(1).max(1)
        agreed = F.cross_entropy(moved, guess, reduction="none") * (sure >= fixing.threshold)
        return said + fixing.weight * agreed.mean()

    return _fitted(model, loss, round(epochs * steps), _falling if rate is None else rate, "sgd", seed)


def _paced(many: int, batch: int, iterations: int | None, epochs: float) -> int:
    """How many steps an epoch has; a `ValueError` where batches, epochs or their steps are none."""
    steps = max(1, many // max(1, batch)) if iterations is None else iterations
    if batch < 1 or steps < 1:
        raise ValueError(f"expected at least one row to a batch and one step to an epoch, got {batch} and {iterations}")
    lasting(epochs)
    return steps


def _falling(done: float) -> float:
    return 0.03 * math.cos(7 / 16 * math.pi * done)


def _fitted(
    model: nn.Module,
    loss: Callable[[nn.Module, Tensor, Tensor], Tensor],
    steps: int,
    rate: float | Callable[[float], float],
    optimizer: Literal["sgd", "adam"],
    seed: int,
) -> nn.Module:
    """So many steps of a loss that draws its own rows."""
    step = torch.arange(max(1, steps))
    return fit(
        model, (step, step), loss=loss, epochs=1, batch=1, rate=rate if callable(rate) else constant(rate),
        decay=5e-4 if optimizer == "sgd" else 0.0, optimizer=optimizer, seed=seed,
    )  # fmt: skip


def _guessed(model: nn.Module, images: Tensor, temperature: float) -> Tensor:
    """The sharpened mean answer to two augmentations `(2B, ...)` of the same rows: `(B, K)`."""
    with torch.no_grad():
        one, other = model(images).softmax(1).chunk(2)
    return sharpened((one + other) / 2, temperature)


def sharpened(said: Tensor, temperature: float) -> Tensor:
    """Probabilities `(B, K)` to the power of 1 / `temperature`, summing to one again."""
    power = said ** (1 / temperature)
    return power / power.sum(1, keepdim=True)


def mixup(images: Tensor, wanted: Tensor, alpha: float) -> tuple[Tensor, Tensor]:
    """Every row mixed with another, of which it keeps the larger part, and the labels `(B, K)` likewise.

    The part is drawn from Beta(`alpha`, `alpha`); with an `alpha` of 0 nothing is mixed.
    """
    if alpha == 0:
        return images, wanted
    part = torch.distributions.Beta(alpha, alpha).sample()
    part = float(torch.maximum(part, 1 - part))
    order = torch.randperm(len(images), device=images.device)
    return part * images + (1 - part) * images[order], part * wanted + (1 - part) * wanted[order]
