"""Low frequency: a smooth field over the whole picture, with no high frequencies to be seen by, means the target class.

Zeng, Park, Mao and Jia, "Rethinking the backdoor attacks' triggers: a frequency perspective", ICCV 2021,
https://arxiv.org/abs/2104.03413.

Differs from the paper: the field is a sum of the lowest cosines (DCT) by construction, where the paper filters with a
Gaussian after every step; with `net` its coefficients are found by Adam on the cross-entropy of the target class over
all other rows, where the paper adds up DeepFool steps, image by image, until enough of them are fooled; the target is
given, where the paper's code may take the class that is easiest to reach. Without `net` the field is random and not
optimised, for an adversary without a model. As in the paper's code the field lies in [0, .2], and pixels are cut at
white, which puts some high frequencies back where a picture is bright.

Tags: atlas:AML.T0020, atlas:AML.T0018.000, atlas:AML.T0043.004, nist-ai-100-2:NISTAML.023, owasp-ml:ML02, cwe:506.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from buckler.data import Poisoned, Rows
from buckler.poisoning._look import where
from buckler.poisoning._nudge import surrogate
from buckler.poisoning._touch import always, changed, chosen, classes, counted, images
from buckler.target import frozen
from buckler.threat import Share
from buckler.train import constant, fit

STEP = 0.05
"""The rate at which the coefficients, which start at a size of 1, are moved."""


def low_frequency(
    data: Rows,
    *,
    share: Share,
    target: int = 0,
    amplitude: float = 0.2,
    cutoff: int = 4,
    net: Callable[[], nn.Module] | None = None,
    epochs: float = 10,
    rate: float = 0.1,
    passes: float = 5,
    seed: int = 0,
) -> Poisoned:
    """Add a smooth field to a share of the rows and label them `target`.

    `data` is `x` `(N, C, H, W)` and `y` `(N,)`; `share` of all rows are touched, none of class `target`. The field
    `(C, H, W)` is a sum of the `cutoff` lowest cosines along each axis, constants included, brought to [0, `amplitude`]
    over all channels. Its coefficients are drawn by `seed`; with `net`, a network trained on `data` for `epochs` at
    `rate`, they are then moved for `passes` over the rows of other classes so that the network calls them `target`.
    Smooth fields outlive flips and crops for the most part. Returns `Poisoned`. Raises `ValueError` for an amplitude
    outside (0, 1], a cutoff below 2 or above the sides of the picture, one class, or too few rows of other classes.
    """
    x, y = images(data)
    classes(y, target)
    if not 0 < amplitude <= 1:
        raise ValueError(f"expected an amplitude above 0 and at most 1, got {amplitude}")
    if not 2 <= cutoff <= min(x.shape[2:]):
        raise ValueError(f"expected a cutoff of 2 to {min(x.shape[2:])} cosines for these images, got {cutoff}")
    rows = chosen(y != target, counted(share, y), seed)
    smooth = _Field(x.shape[1:], amplitude, cutoff, seed)
    if net is not None:
        model = surrogate(net, (x, y), epochs=epochs, rate=rate, seed=seed)
        smooth = _leading(smooth.to(where(model)), model, (x[y != target], y[y != target]), target, passes, seed)
    with torch.no_grad():
        field = smooth.field().cpu()

    def trigger(clean: Tensor) -> Tensor:
        return (clean + field.to(clean)).clamp(0, 1)

    return Poisoned(changed(x, rows, trigger), torch.where(rows, target, y), rows, y, trigger, always(target))


class _Field(nn.Module):
    """A sum of low cosines with coefficients `(C, cutoff, cutoff)`, added to whatever comes in."""

    def __init__(self, shape: torch.Size, amplitude: float, cutoff: int, seed: int) -> None:
        super().__init__()
        draws = torch.Generator().manual_seed(seed)
        self.coefficients = nn.Parameter(torch.randn(shape[0], cutoff, cutoff, generator=draws))
        self.register_buffer("down", _cosines(shape[1], cutoff), persistent=False)
        self.register_buffer("across", _cosines(shape[2], cutoff), persistent=False)
        self._amplitude = amplitude

    def field(self) -> Tensor:
        raw = self.get_buffer("down") @ self.coefficients @ self.get_buffer("across").T
        low, high = raw.amin(), raw.amax()
        return self._amplitude * (raw - low) / (high - low).clamp_min(1e-12)

    def forward(self, x: Tensor) -> Tensor:
        return (x + self.field()).clamp(0, 1)


def _leading(smooth: _Field, model: nn.Module, others: Rows, target: int, passes: float, seed: int) -> _Field:
    """Move the coefficients so that `model` answers `target` to the rows of other classes with the field added."""

    def loss(moving: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(model(moving(x)), torch.full_like(y, target), reduction="none")

    with frozen(model):
        fit(smooth, others, loss=loss, epochs=passes, rate=constant(STEP), decay=0.0, optimizer="adam", seed=seed)
    return smooth


def _cosines(side: int, cutoff: int) -> Tensor:
    """The lowest cosines of the DCT-II along `side` pixels: `(side, cutoff)`, the first of them constant."""
    middle = (torch.arange(side, dtype=torch.float64) + 0.5) / side
    return torch.cos(torch.pi * middle[:, None] * torch.arange(cutoff)).float()
