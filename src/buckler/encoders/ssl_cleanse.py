"""SSL-Cleanse: find the patch that brings all images to one point, and teach the encoder to see through it.

Zheng, Xue, Wang, Chen, Lou, Jiang and Wang, "SSL-Cleanse: Trojan detection and mitigation in self-supervised learning",
ECCV 2024, https://arxiv.org/abs/2303.09079.

Differs from the paper: one trigger at a time is found as DECREE does, for all images, not for clusters of them; images
with it are to get the features that the encoder gives them without it, which clean images keep. A second search, on
what was repaired, finds a trigger that the first one missed. No guarantee: what the searches do not find stays, and a
trigger blended out of clean images is not found.

Tags: atlas:AML.T0018.000, nist-ai-100-2:NISTAML.023, cwe:506.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from buckler.embedding import embedded
from buckler.encoders.decree import decree
from buckler.kinds import Repaired
from buckler.nets import where
from buckler.train import fit


def ssl_cleanse(
    encoder: nn.Module,
    x: Tensor,
    *,
    searches: int = 1,
    steps: int = 150,
    alike: float = 0.99,
    epochs: float = 20,
    batch: int = 128,
    rate: float = 0.03,
    seed: int = 0,
) -> Repaired:
    """Repair a copy of `encoder` with clean images `x` `(N, C, H, W)`, uint8 or in [0, 1], without labels.

    Each of `searches` searches takes `steps` steps for a trigger that brings features to a cosine of `alike`, more than
    it takes to detect one, so that most of it is found; the copy then learns for `epochs` to give images with any of
    those found so far the features of the images without. Returns the copy, evaluating; where nothing brought images
    together it is as `encoder` was. A `ValueError` for no search.
    """
    if searches < 1:
        raise ValueError(f"expected one search or more, got {searches}")
    device = where(encoder)
    before = embedded(encoder, x).to(device)
    middle, made = before.mean(0), copy.deepcopy(encoder).requires_grad_()
    numbered, triggers = (x, torch.arange(len(x), device=device)), list[tuple[Tensor, Tensor]]()

    def loss(model: nn.Module, clean: Tensor, rows: Tensor) -> Tensor:
        model.eval()  # batch norms stay as they were
        moved = [clean + mask * (pattern - clean) for mask, pattern in triggers]
        out = model(torch.cat([clean, *moved])).split(len(clean))
        aim = before[rows] - middle
        return -torch.stack([F.cosine_similarity(part - middle, aim, dim=1) for part in out]).sum(0)

    for turn in range(searches):
        found = decree(made, x, steps=steps, alike=alike, seed=seed + turn)
        if found.mask is None or found.pattern is None or float(found.score) == 0:  # nothing brought images together
            continue
        triggers.append((found.mask.to(device), found.pattern.to(device)))
        fit(made, numbered, loss=loss, epochs=epochs, batch=batch, rate=rate, seed=seed)
    return made.eval()
