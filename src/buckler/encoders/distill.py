"""Distillation: a network that never saw the trigger learns the features that the encoder gives clean images.

Saha, Tejankar, Koohpayegani and Pirsiavash, "Backdoor attacks on self-supervised learning", CVPR 2022,
https://arxiv.org/abs/2105.10123, whose defence it is.

Differs from the paper: the student begins untrained and learns the features themselves, compared around their mean over
the images, and not how similar images are to each other; images are learnt as they are (`least=None`), because crops of
small images can show something like a trigger, and the student learns that as well. No guarantee: a trigger that clean
images can bear by chance is taught too, and who knows of distillation takes one (`drupe`).

Tags: atlas:AML.T0018.000, nist-ai-100-2:NISTAML.023, cwe:506.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from buckler.embedding import embedded
from buckler.encoders._contrast import views
from buckler.kinds import Repaired
from buckler.nets import where
from buckler.target import frozen
from buckler.train import fit, started


def distill(
    encoder: nn.Module,
    x: Tensor,
    *,
    net: Callable[[], nn.Module],
    least: float | None = None,
    epochs: float = 60,
    batch: int = 128,
    rate: float = 0.1,
    decay: float = 5e-4,
    seed: int = 0,
) -> Repaired:
    """Train `net()`, which gives features as wide as those of `encoder`, on clean images `x` `(N, C, H, W)`, uint8 or
    in [0, 1], to give the features that `encoder` gives. No labels are used.

    With `least` both see crops of at least this share, mirrored or not. Returns the student, evaluating. A `ValueError`
    where the features of the two differ in width.
    """
    device = where(encoder)
    before = embedded(encoder, x).to(device)
    student, middle = started(net, seed).to(device), before.mean(0)
    wide = embedded(student, x[:2]).shape[1]
    if wide != before.shape[1]:
        raise ValueError(f"expected a net whose features are as wide as the encoder's {before.shape[1]}, got {wide}")
    look = None if least is None else views(least)

    def loss(model: nn.Module, clean: Tensor, rows: Tensor) -> Tensor:
        seen = clean if look is None else look(clean)
        if look is None:
            aim = before[rows]
        else:
            with torch.no_grad(), frozen(encoder):
                aim = encoder(seen)
        return -F.cosine_similarity(model(seen) - middle, aim - middle, dim=1)

    numbered = x, torch.arange(len(x), device=device)
    return fit(student, numbered, loss=loss, epochs=epochs, batch=batch, rate=rate, decay=decay, seed=seed)
