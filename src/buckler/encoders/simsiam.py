"""SimSiam: one view of an image foretells the other, and nothing is told apart.

Chen and He, "Exploring simple Siamese representation learning", CVPR 2021, https://arxiv.org/abs/2011.10566.

Differs from the paper: sized for small images: a head of two layers, no blur, brightness and contrast instead of
colour. It can collapse to one point, which the evaluation looks for. No guarantee.

Tags: nist-ai-100-2:NISTAML.03.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from buckler.data import Rows
from buckler.encoders._contrast import headed, views
from buckler.kinds import Encoder
from buckler.nets import where
from buckler.train import fit, started


def simsiam(
    data: Rows,
    *,
    net: Callable[[], nn.Module],
    least: float = 0.2,
    out: int = 128,
    epochs: float = 20,
    batch: int = 128,
    rate: float = 0.05,
    decay: float = 5e-4,
    seed: int = 0,
) -> Encoder:
    """Train the encoder `net()` on the images of `data` `(N, C, H, W)`, uint8 or in [0, 1]; labels are not looked at.

    Views are crops of at least the share `least`; a head of `out` numbers, and a predictor above it whose narrow middle
    has a quarter of them, are thrown away. Returns the encoder, evaluating: features `(B, D)`. A `ValueError` for what
    is no image, and for an encoder that gives no matrix.
    """
    look = views(least)
    body = headed(net, data, out, seed)
    narrow = max(1, out // 4)
    scaled = nn.BatchNorm1d(out)
    above = started(
        lambda: nn.Sequential(nn.Linear(out, narrow), nn.BatchNorm1d(narrow), nn.ReLU(), nn.Linear(narrow, out)),
        seed + 1,
    )
    model = nn.ModuleList([body, scaled, above]).to(where(body))

    def loss(_model: nn.Module, x: Tensor, _: Tensor) -> Tensor:
        z = scaled(body(look(torch.cat([x, x]))))
        return -F.cosine_similarity(above(z), z.detach().roll(len(x), 0)).view(2, -1).mean(0)

    fit(model, data, loss=loss, epochs=epochs, batch=batch, rate=rate, decay=decay, seed=seed)
    return body.encoder.eval()
