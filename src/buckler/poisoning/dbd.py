"""Decoupling: learn what images look like without their labels, then trust the labels that agree with it.

Huang, Li, Wu, Qin and Ren, "Backdoor defense via decoupling the training process", ICLR 2022,
https://arxiv.org/abs/2202.03423; settings of the authors' repository, https://github.com/SCLBD/DBD.

Self-supervised features (SimCLR: Chen et al., ICML 2020, https://arxiv.org/abs/2002.05709) hold poisoned rows beside
others of their true class, so that a linear head disagrees with a false label. MixMatch then trains the whole network
on the half of the rows that agrees most, ranked anew every epoch.

Differs from the paper: the linear head is trained on features that are computed once, of images as they are; both
views of a row are anchors, as in SimCLR; views are _cropped, mirrored, and changed in brightness and contrast, with
neither blur nor color, so that they serve gray images. No guarantee: a trigger that gathers rows in the self-supervised
features (a pattern over the whole image, say) can be trusted. The cost is that of the self-supervision.

Tags: atlas:AML.T0020, nist-ai-100-2:NISTAML.023, owasp-ml:ML02, cwe:506.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from buckler.augment import Augment, chained, flip
from buckler.data import Rows
from buckler.kinds import Cultivated
from buckler.poisoning._look import features, inputs_of, last_linear, outputs
from buckler.poisoning._mixmatch import MOVED, Mixing, mixmatch
from buckler.poisoning._split import Splits, lowest, symmetric
from buckler.poisoning._touch import classes, images
from buckler.train import constant, cosine, fit, lasting, started


def _cropped(least: float) -> Augment:
    """A function that zooms into a random part of the image, of at least the share `least` of its area."""

    def crop(x: Tensor) -> Tensor:
        side = (torch.rand(len(x), device=x.device) * (1 - least) + least).sqrt()
        centre = (torch.rand(2, len(x), device=x.device) * 2 - 1) * (1 - side)
        zero = torch.zeros_like(side)
        rows = [torch.stack([side, zero, centre[0]], 1), torch.stack([zero, side, centre[1]], 1)]
        grid = F.affine_grid(torch.stack(rows, 1).to(x.dtype), list(x.shape), align_corners=False)
        return F.grid_sample(x, grid, padding_mode="border", align_corners=False)

    return crop


def _lit(most: float) -> Augment:
    """A function that multiplies brightness, then contrast about the mean, by a factor of up to 1 +- `most`."""

    def light(x: Tensor) -> Tensor:
        factor = 1 + most * (torch.rand(2, len(x), 1, 1, 1, device=x.device) * 2 - 1)
        x = (x * factor[0]).clamp(0, 1)
        mean = x.mean((1, 2, 3), keepdim=True)
        return ((x - mean) * factor[1] + mean).clamp(0, 1)

    return light


VIEWS: Augment = chained(_cropped(0.2), flip, _lit(0.4))
"""SimCLR's augmentation for gray images."""


def dbd(
    data: Rows,
    *,
    net: Callable[[], nn.Module],
    trust: float = 0.5,
    epochs: tuple[float, float, float] = (1000, 10, 190),
    iterations: int | None = 1024,
    batch: tuple[int, int, int] = (512, 128, 64),
    rate: tuple[float, float] = (0.4, 2e-3),
    temperature: float = 0.5,
    weight: float = 15.0,
    views: Augment = VIEWS,
    augment: Augment = MOVED,
    seed: int = 0,
) -> Cultivated:
    """Train a model from `data`, `x` `(N, C, H, W)` and `y` `(N,)`, that believes only labels which suit the images.

    `epochs` and `batch` are those of the three stages: SimCLR at the given `temperature`, with `views`, at the first
    `rate`; the linear head with symmetric cross-entropy; MixMatch on the share `trust` of rows with the lowest one,
    both at the second `rate`. MixMatch's epoch is `iterations` steps, or one pass if none are given, and its unlabelled
    loss rises to `weight`. Returns the model, the suspicion (the symmetric cross-entropy at the last ranking; flagged
    are rows that were not trusted and that the model contradicts) and dynamics: of every ranking the loss, confidence,
    agreement and trust. Raises `ValueError` for one class, a share of no rows or of all, or a model without a linear
    layer.
    """
    x, y = images(data)
    classes(y)
    lasting(*epochs)
    lowest(torch.zeros(len(y)), trust)  # a share that cannot be split is said before anything is trained
    model = started(net, seed)
    outputs(model, (x, y))
    head = last_linear(model)
    nothing = torch.zeros(len(x), dtype=torch.long)
    fit(
        _Projected(model, seed), (x, nothing), loss=_contrasted(views, temperature), epochs=epochs[0], batch=batch[0],
        rate=cosine(rate[0]), decay=1e-4, seed=seed,
    )  # fmt: skip
    fit(
        head, (features(model, (x, y)), y), loss=_said, epochs=epochs[1], batch=batch[1], rate=constant(rate[1]),
        decay=0.0, optimizer="adam", seed=seed + 1,
    )  # fmt: skip
    splits = Splits(model, (x, y))

    def trusted(_epoch: int) -> Tensor:
        score = splits.disagreement()
        return splits.keep(score, lowest(score, trust))

    if epochs[2] > 0:
        mixing = Mixing(weight=weight, ramp=epochs[2], done=epochs[1])
        mixmatch(
            model, (x, y), trusted, epochs=epochs[2], batch=batch[2], iterations=iterations, mixing=mixing,
            augment=augment, rate=rate[1], seed=seed + 2,
        )  # fmt: skip
    else:
        trusted(0)
    return Cultivated(model.eval(), splits.suspicion(), splits.dynamics)


class _Projected(nn.Module):
    """A network's features through a head that is only there while SimCLR trains, on the unit sphere: `(B, 128)`."""

    def __init__(self, model: nn.Module, seed: int) -> None:
        super().__init__()
        self.model = model
        self._read = [last_linear(model)]  # in a list, so that it is not a second child
        self.project = started(lambda: _head(self._read[0].in_features), seed).to(self._read[0].weight.device)

    def forward(self, x: Tensor) -> Tensor:
        with inputs_of(self._read[0]) as seen:
            self.model(x)
        return F.normalize(self.project(seen[-1].flatten(1)), dim=1)


def _head(width: int) -> nn.Module:
    return nn.Sequential(nn.Linear(width, width), nn.BatchNorm1d(width), nn.ReLU(), nn.Linear(width, 128))


def _contrasted(views: Augment, temperature: float) -> Callable[[nn.Module, Tensor, Tensor], Tensor]:
    def loss(model: nn.Module, x: Tensor, _y: Tensor) -> Tensor:
        return _nt_xent(model(torch.cat([views(x), views(x)])), temperature)

    return loss


def _nt_xent(z: Tensor, temperature: float) -> Tensor:
    """SimCLR's loss per row, `(B,)`, of two views of each row, `(2B, D)` on the unit sphere: the cross-entropy of
    finding a view's partner among all other views of the batch."""
    many = len(z) // 2
    near = (z @ z.T / temperature).fill_diagonal_(-torch.inf)
    partner = torch.arange(2 * many, device=z.device).roll(many)
    return F.cross_entropy(near, partner, reduction="none").view(2, many).mean(0)


def _said(head: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return symmetric(head(x), y)
