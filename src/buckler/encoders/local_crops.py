"""Localized cropping: both views of an image come from one neighbourhood in it, so that far parts never become alike.

Zhang, Liu, Jia and Gong, "Data poisoning based backdoor attacks to contrastive learning", CVPR 2024, the defence of
section 6, https://arxiv.org/abs/2211.08229.

Differs from the paper: a neighbourhood is a crop, out of which both views are cropped again, where the paper takes the
second crop within some pixels of the first; the encoder learns by SimCLR. No guarantee.

Tags: nist-ai-100-2:NISTAML.024.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from buckler.augment import cropped
from buckler.data import Rows
from buckler.encoders._contrast import contrast, headed, views
from buckler.kinds import Encoder
from buckler.train import fit


def local_crops(
    data: Rows,
    *,
    net: Callable[[], nn.Module],
    near: float = 0.4,
    within: float = 0.5,
    temperature: float = 0.2,
    out: int = 128,
    epochs: float = 20,
    batch: int = 128,
    rate: float = 0.1,
    decay: float = 5e-4,
    seed: int = 0,
) -> Encoder:
    """Train the encoder `net()` on the images of `data` `(N, C, H, W)`, uint8 or in [0, 1]; labels are not looked at.

    Of each image a neighbourhood is cut out, of at least the share `near`; views are crops of at least the share
    `within` of it. The rest is SimCLR. Returns the encoder, evaluating: features `(B, D)`. A `ValueError` for what is
    no image, and for an encoder that gives no matrix.
    """
    around, look = cropped(near), views(within)

    def loss(model: nn.Module, x: Tensor, _: Tensor) -> Tensor:
        part = around(x)
        return contrast(model(torch.cat([look(part), look(part)])), temperature)

    model = headed(net, data, out, seed)
    fit(model, data, loss=loss, epochs=epochs, batch=batch, rate=rate, decay=decay, seed=seed)
    return model.encoder.eval()
