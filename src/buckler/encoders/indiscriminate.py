"""Indiscriminate poisoning: noise by which views of an image are easily found, so that nothing else is learnt.

He, Zha and Katabi, "Indiscriminate poisoning attacks on unsupervised contrastive learning", ICLR 2023,
https://arxiv.org/abs/2202.11202.

Differs from the paper: CP-S only, noise that belongs to an image; encoder and noise are moved by one and the same
backward pass, where the paper moves them in turn; the encoder learns by SimCLR's loss and views, of which all are
differentiable here. No noise is learnt for a trainer that is not contrastive.

Tags: atlas:AML.T0020, atlas:AML.T0059, nist-ai-100-2:NISTAML.012, owasp-ml:ML02.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from buckler.data import Poisoned, Rows, floats
from buckler.encoders._contrast import contrast, headed, views
from buckler.threat import Share
from buckler.touch import CHUNK, changed, chosen, counted, images
from buckler.train import fit

ALL = Share(1.0)


def indiscriminate(
    data: Rows,
    *,
    net: Callable[[], nn.Module],
    share: Share = ALL,
    radius: float = 8 / 255,
    least: float = 0.2,
    temperature: float = 0.2,
    epochs: float = 40,
    batch: int = 128,
    rate: float = 0.1,
    seed: int = 0,
) -> Poisoned:
    """Add noise within linf `radius` to a share of the rows, all of them if none is given.

    `data` is `x` `(N, C, H, W)` and `y` `(N,)`, which is not looked at. An encoder of the adversary's own, from `net`,
    learns from the noisy rows for `epochs` by SimCLR, with crops of at least `least` at `temperature`; at every step
    the noise of the rows that it sees takes a signed step of `radius` / 10 down the same loss. There is no trigger and
    no prey: the encoder is to be good for nothing. Returns `Poisoned`. Raises `ValueError` for a radius outside (0, 1].
    """
    x, y = images(data)
    if not 0 < radius <= 1:
        raise ValueError(f"expected a radius above 0 and at most 1, got {radius}")
    rows = chosen(torch.ones_like(y, dtype=torch.bool), counted(share, y), seed)
    clean = floats(x[rows])
    model = headed(net, (clean, y[rows]), 128, seed)
    device = next(model.parameters()).device
    look, noise = views(least), torch.zeros_like(clean, device=device)

    def loss(model: nn.Module, held: Tensor, place: Tensor) -> Tensor:
        noisy = (held + noise[place]).clamp(0, 1).requires_grad_()

        def move(slope: Tensor) -> None:
            noise[place] = (noise[place] - radius / 10 * slope.sign()).clamp(-radius, radius)

        noisy.register_hook(move)
        return contrast(model(torch.cat([look(noisy), look(noisy)])), temperature)

    fit(model, (clean, torch.arange(len(clean))), loss=loss, epochs=epochs, batch=batch, rate=rate, seed=seed)
    parts = iter(noise.cpu().split(CHUNK))
    return Poisoned(changed(x, rows, lambda held: held + next(parts).to(held)), y, rows, y)
