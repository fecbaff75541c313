"""MoCo v2: two views of an image are alike, and unlike a queue of images that a slower copy has seen before.

Chen, Fan, Girshick and He, "Improved baselines with momentum contrastive learning", 2020,
https://arxiv.org/abs/2003.04297; He, Fan, Wu, Xie and Girshick, CVPR 2020, https://arxiv.org/abs/1911.05722.

Differs from the paper: sized for small images: a shorter queue and a faster copy, no blur, brightness and contrast
instead of colour; on one device the slower copy sees a batch in another order and in parts, so that its batch norms do
not tell which rows were together. No guarantee.

Tags: nist-ai-100-2:NISTAML.03.
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from buckler.data import Rows
from buckler.encoders._contrast import headed, views
from buckler.kinds import Encoder
from buckler.train import fit

PART = 64
"""Rows that the slower copy's batch norms see together."""


def moco(
    data: Rows,
    *,
    net: Callable[[], nn.Module],
    temperature: float = 0.2,
    momentum: float = 0.99,
    queue: int = 2048,
    least: float = 0.2,
    out: int = 128,
    epochs: float = 20,
    batch: int = 128,
    rate: float = 0.1,
    decay: float = 5e-4,
    seed: int = 0,
) -> Encoder:
    """Train the encoder `net()` on the images of `data` `(N, C, H, W)`, uint8 or in [0, 1]; labels are not looked at.

    The copy keeps `momentum` of itself at every step, and its last `queue` answers, but of no more than half of the
    images, are what a view is told from, at `temperature`. Views are crops of at least the share `least`; a head of
    `out` numbers is thrown away. Returns the encoder, evaluating: features `(B, D)`. A `ValueError` for what is no
    image, or an encoder that gives no matrix.
    """
    model = headed(net, data, out, seed)
    slow = copy.deepcopy(model).requires_grad_(False).train()
    look = views(least)
    queue = min(queue, len(data[0]) // 2)
    kept = F.normalize(torch.randn(queue, out, generator=torch.Generator().manual_seed(seed)), dim=1)

    def loss(model: nn.Module, x: Tensor, _: Tensor) -> Tensor:
        nonlocal kept
        kept = kept.to(x.device)
        with torch.no_grad():
            for old, new in zip(slow.parameters(), model.parameters(), strict=True):
                old.lerp_(new, 1 - momentum)
            order = torch.randperm(len(x), device=x.device)
            seen = torch.cat([slow(part) for part in look(x[order]).split(_parts(len(x)))])
            keys = F.normalize(torch.empty_like(seen).index_copy_(0, order, seen), dim=1)
        asked = F.normalize(model(look(x)), dim=1)
        scores = torch.cat([(asked * keys).sum(1, keepdim=True), asked @ kept.T], 1) / temperature
        kept = torch.cat([keys, kept])[:queue]
        return F.cross_entropy(scores, torch.zeros(len(x), dtype=torch.long, device=x.device), reduction="none")

    fit(model, data, loss=loss, epochs=epochs, batch=batch, rate=rate, decay=decay, seed=seed)
    return model.encoder.eval()


def _parts(rows: int) -> list[int]:
    """`PART` rows each, as far as they go, and none alone: of one row a batch norm has no variance."""
    many = max(1, rows // PART)
    return [rows * (part + 1) // many - rows * part // many for part in range(many)]
