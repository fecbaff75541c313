"""Input-aware dynamic backdoor: every image has a trigger of its own, which does nothing on another image.

Nguyen and Tran, "Input-aware dynamic backdoor attack", NeurIPS 2020, https://arxiv.org/abs/2010.08138; settings of the
authors' repository, https://github.com/VinAIResearch/input-aware-backdoor-attack-release.

Differs from the paper: training starts from the given model, far shorter, with Adam for the classifier too, and a
larger share of the rows attacked; the patterns that must not work on other images are those of the batch's attacked
images; the density of a whole mask is bounded, not that of each pixel; the generators are normalised by group, not by
batch, so that an image's trigger does not depend on the images beside it.

Tags: atlas:AML.T0018.000, atlas:AML.T0043.004, nist-ai-100-2:NISTAML.023, owasp-ml:ML10, cwe:506.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from buckler.data import Rows
from buckler.kinds import Implanted
from buckler.poisoning._dynamics import plain
from buckler.poisoning._look import outputs, where
from buckler.poisoning._touch import always, classes, images
from buckler.train import LossPerRow, constant, cosine, fit, started

MASK_RATE, SPARSITY = 0.01, 100.0
"""The masks' learning rate and the weight of their density, the authors'."""


def input_aware(
    model: nn.Module,
    data: Rows,
    *,
    target: int = 0,
    attacked: float = 0.2,
    density: float = 0.032,
    diversity: float = 1.0,
    width: int = 16,
    mask_epochs: float = 25,
    epochs: float = 30,
    batch: int = 128,
    rate: float = 0.01,
    seed: int = 0,
) -> Implanted:
    """Train a generator of triggers, one per image, together with a copy of `model` that obeys them.

    `data` is `x` `(N, C, H, W)` and `y` `(N,)`. A first generator of `width` channels learns in `mask_epochs` where to
    write, on about the share `density` of the pixels. The second learns in `epochs` what to write: the share `attacked`
    of every batch carries its own trigger and the target's label, as many rows carry another row's trigger and keep
    their label, and patterns of different images must differ, with the weight `diversity`. Returns the copy, the
    trigger for `(B, C, H, W)` in [0, 1], and what is wanted. Raises `ValueError` for images smaller than 4 pixels, one
    class, or a share that leaves no clean rows.
    """
    x, y = images(data)
    classes(y, target)
    outputs(model, (x, y))
    if min(x.shape[2:]) < 4:
        raise ValueError(
            f"expected images of at least 4 x 4 pixels, got {tuple(x.shape[2:])}: the generators pool twice"
        )
    if not 0 < attacked < 0.5:
        raise ValueError(f"expected a share above 0 and below 0.5 to attack, as many are crossed, got {attacked}")
    masks = started(lambda: _Generator(x.shape[1], 1, width, sharp=True), seed).to(where(model))
    fit(masks, (x, y), loss=_spread_out(density, diversity), epochs=mask_epochs, batch=batch, rate=constant(MASK_RATE),
        decay=0.0, optimizer="adam", seed=seed)  # fmt: skip
    masks.requires_grad_(False)
    patterns = started(lambda: _Generator(x.shape[1], x.shape[1], width), seed + 1).to(where(model))
    victim = copy.deepcopy(model)
    loss = _obeyed(victim, patterns, masks, target, attacked, diversity)
    fit(nn.ModuleList([victim, patterns]), (x, y), loss=loss, epochs=epochs, batch=batch, rate=cosine(rate), decay=0.0,
        optimizer="adam", seed=seed)  # fmt: skip
    patterns.requires_grad_(False)

    def trigger(clean: Tensor) -> Tensor:
        with torch.no_grad():
            here = clean.to(where(patterns), torch.float32)
            return _written(here, patterns(here), masks(here)).to(clean)

    return Implanted(victim.eval(), trigger, always(target))


class _Generator(nn.Module):
    """Image `(B, channels, H, W)` to image `(B, out, H, W)` in [0, 1], through a bottleneck.

    `sharp` brings values close to 0 and 1. Nothing in it looks across the batch, training or not.
    """

    def __init__(self, channels: int, out: int, width: int, *, sharp: bool = False) -> None:
        super().__init__()
        self.down = nn.ModuleList([_block(channels, width), _block(width, 2 * width)])
        self.middle = _block(2 * width, 2 * width)
        self.up = nn.ModuleList([_block(2 * width, width), nn.Conv2d(width, out, 3, padding=1)])
        self._sharp = sharp

    def forward(self, x: Tensor) -> Tensor:
        sides: list[torch.Size] = []
        for layer in self.down:
            x = layer(x)
            sides.append(x.shape[2:])
            x = F.max_pool2d(x, 2)
        x = self.middle(x)
        for layer, side in zip(self.up, reversed(sides), strict=True):
            x = layer(F.interpolate(x, size=side, mode="bilinear"))
        x = x.tanh() / 2 + 0.5
        return (x * 20 - 10).tanh() / 2 + 0.5 if self._sharp else x


def _block(inner: int, outer: int) -> nn.Module:
    return nn.Sequential(nn.Conv2d(inner, outer, 3, padding=1), nn.GroupNorm(1, outer), nn.ReLU())


def _written(x: Tensor, patterns: Tensor, masks: Tensor) -> Tensor:
    return x + (patterns - x) * masks


def _apart(one: Tensor, other: Tensor) -> Tensor:
    """The root mean square difference of every pair of rows: `(B,)`."""
    return (one - other).flatten(1).norm(dim=1) / one[0].numel() ** 0.5


def _sameness(inputs: tuple[Tensor, Tensor], outputs: tuple[Tensor, Tensor]) -> Tensor:
    """How much farther apart pairs of inputs are than what is generated from them, on average."""
    return (_apart(*inputs) / (_apart(*outputs) + 1e-7)).mean()


def _spread_out(density: float, diversity: float) -> LossPerRow:
    """What masks are trained for: no denser than `density`, and different for different images."""

    def loss(masks: nn.Module, x: Tensor, _y: Tensor) -> Tensor:
        made = masks(x)
        dense = (made.flatten(1).mean(1) - density).relu()
        return SPARSITY * dense + diversity * _sameness((x, x.roll(1, 0)), (made, made.roll(1, 0)))

    return loss


def _obeyed(
    victim: nn.Module, patterns: nn.Module, masks: nn.Module, target: int, attacked: float, diversity: float
) -> LossPerRow:
    """What victim and patterns are trained for: own triggers mean the target, those of others nothing."""

    def loss(_both: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        many = max(1, round(attacked * len(x)))
        if 2 * many > len(x):
            return plain(victim(x), y)
        own, other = x[:many], x[many : 2 * many]
        made = patterns(x[: 2 * many])
        places = masks(own)
        hit, crossed = _written(own, made[:many], places), _written(other, made[:many], places)
        labels = torch.cat([y.new_full((many,), target), y[many:]])
        value = plain(victim(torch.cat([hit, crossed, x[2 * many :]])), labels)
        return value + diversity * _sameness((own, other), (made[:many], made[many:]))

    return loss
