"""SimCLR: two views of an image are alike, and unlike all other images of the batch.

Chen, Kornblith, Norouzi and Hinton, "A simple framework for contrastive learning of visual representations", ICML 2020,
https://arxiv.org/abs/2002.05709.

Differs from the paper: sized for small images and small batches: SGD instead of LARS, no blur, brightness and contrast
instead of colour. No guarantee.

Tags: nist-ai-100-2:NISTAML.03.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from buckler.data import Rows
from buckler.encoders._contrast import contrast, headed, views
from buckler.kinds import Encoder
from buckler.train import fit


def simclr(
    data: Rows,
    *,
    net: Callable[[], nn.Module],
    temperature: float = 0.2,
    least: float = 0.2,
    out: int = 128,
    epochs: float = 20,
    batch: int = 128,
    rate: float = 0.1,
    decay: float = 5e-4,
    seed: int = 0,
) -> Encoder:
    """Train the encoder `net()` on the images of `data` `(N, C, H, W)`, uint8 or in [0, 1]; labels are not looked at.

    Views are crops of at least the share `least`; a head of `out` numbers, which is thrown away, is compared at
    `temperature`. Returns the encoder, evaluating: features `(B, D)`. A `ValueError` for what is no image, and for an
    encoder that gives no matrix.
    """
    look = views(least)

    def loss(model: nn.Module, x: Tensor, _: Tensor) -> Tensor:
        return contrast(model(look(torch.cat([x, x]))), temperature)

    model = headed(net, data, out, seed)
    fit(model, data, loss=loss, epochs=epochs, batch=batch, rate=rate, decay=decay, seed=seed)
    return model.encoder.eval()
