"""Adversarial contrastive pre-training: one view, moved until it looks least like the other, is brought back to it.

Kim, Tack and Hwang, "Adversarial self-supervised contrastive learning" (RoCL), NeurIPS 2020,
https://arxiv.org/abs/2006.07589; Jiang, Chen, Chen and Wang, "Robust pre-training by adversarial contrastive learning"
(ACL), NeurIPS 2020, https://arxiv.org/abs/2010.13337.

Differs from the papers: of RoCL's terms the one between the moved view and the other alone;
a search of few steps, as small networks and few rows allow, with batch norms by their running statistics; and what is
said of `encoders/simclr`. No guarantee.

Tags: atlas:AML.M0003, nist-ai-100-2:NISTAML.022, owasp-ml:ML01, cwe:1039.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from buckler.data import Rows
from buckler.encoders._contrast import contrast, headed, views
from buckler.kinds import Encoder
from buckler.target import frozen
from buckler.threat import Ball
from buckler.train import fit


def adversarial_contrastive(
    data: Rows,
    *,
    net: Callable[[], nn.Module],
    radius: float = 0.1,
    search: int = 2,
    temperature: float = 0.2,
    least: float = 0.2,
    epochs: float = 20,
    batch: int = 128,
    rate: float = 0.1,
    decay: float = 5e-4,
    seed: int = 0,
) -> Encoder:
    """Train the encoder `net()` on the images of `data` `(N, C, H, W)`, uint8 or in [0, 1]; labels are not looked at.

    Of two views, crops of at least the share `least`, one is moved by at most `radius` in linf, in `search` steps of
    1.5 / `search` radii from a random start, against the loss of SimCLR at `temperature`; that loss is learnt from.
    Returns the encoder, evaluating: features `(B, D)`. A `ValueError` for what is no image, for an encoder that gives
    no matrix, and for no step to search.
    """
    if search < 1:
        raise ValueError(f"expected at least one step to search for what looks least alike, got {search}")
    look, ball = views(least), Ball("linf", radius)

    def loss(model: nn.Module, x: Tensor, _: Tensor) -> Tensor:
        one, other = look(x), look(x)
        moved = ball.clip(one, one + (2 * torch.rand_like(one) - 1) * radius)
        with frozen(model):
            still = model(other)
            for _step in range(search):
                moved.requires_grad_()
                (grad,) = torch.autograd.grad(contrast(torch.cat([model(moved), still]), temperature).sum(), moved)
                moved = ball.clip(one, moved.detach() + 1.5 / search * radius * grad.sign())
        return contrast(model(torch.cat([moved, other])), temperature)

    model = headed(net, data, 128, seed)
    fit(model, data, loss=loss, epochs=epochs, batch=batch, rate=rate, decay=decay, seed=seed)
    return model.encoder.eval()
