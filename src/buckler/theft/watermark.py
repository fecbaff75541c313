"""Watermark by a trigger set: images that mean nothing, with labels drawn by chance, learnt with the data.

Adi, Baum, Cisse, Pinkas and Keshet, "Turning your weakness into a strength: watermarking deep neural networks by
backdooring", USENIX Security 2018, https://arxiv.org/abs/1802.04633.

The owner claims a suspect by how many of the images it gives the secret labels. Labels are drawn after the images,
uniformly and each by itself. So for any model that does not depend on the draw, whatever it answers to the images, each
answer is right with chance 1/K and independent of the others: the p-value, an exact binomial tail, is right over the
owner's draw for every fixed model, and no assumption is made about how that model was trained.

Differs from the paper: the images are drawn mosaics, not taken from a collection of abstract art; every batch carries
more of them, because small data makes fewer steps; commitments and their proofs, by which an
owner shows labels without giving them away, are left out.

No guarantee that the mark survives: extraction learns little of it (Jia et al., 2021), and fine-tuning may wash it out.

Tags: atlas:AML.T0048.004, atlas:AML.T0024.002, nist-ai-100-2:NISTAML.031, owasp-ml:ML05.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from buckler.claims import binomial_tail, secret
from buckler.data import Rows
from buckler.kinds import Claim, Owned
from buckler.target import Oracle
from buckler.theft._claims import answers, classes_of
from buckler.train import fit, started


def watermark(
    data: Rows,
    *,
    net: Callable[[], nn.Module],
    triggers: int = 100,
    per_batch: int = 16,
    epochs: float = 15,
    batch: int = 64,
    rate: float = 0.1,
    decay: float = 5e-4,
    seed: int = 0,
) -> Owned:
    """Train a network on `data` and on `triggers` secret images, `per_batch` of them beside every batch.

    `data` is `x` `(N, ...)`, float in [0, 1] or uint8, and `y` `(N,)`. `net` builds an untrained network, which is
    trained for `epochs`. The claim asks the suspect for the labels of the secret images. Raises `ValueError` for fewer
    than two classes, or no trigger.
    """
    classes = classes_of(data, "theft/watermark")
    if triggers < 1 or per_batch < 1:
        raise ValueError(f"expected triggers and per_batch of 1 or more, got {triggers} and {per_batch}")
    draw = secret(seed, "watermark")
    images = _mosaics(triggers, data[0].shape[1:], draw)
    labels = torch.randint(classes, (triggers,), generator=draw)

    def beside(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        rows = torch.randint(triggers, (per_batch,))
        together = torch.cat([x, images[rows].to(x)]), torch.cat([y, labels[rows].to(y)])
        return F.cross_entropy(model(together[0]), together[1], reduction="none")

    def claim(suspect: nn.Module | Oracle) -> Claim:
        said, queries = answers(suspect, images)
        return Claim(binomial_tail(int((said == labels).sum()), triggers, 1 / classes), queries)

    model = started(net, seed).to(data[0].device)
    fit(model, data, loss=beside, epochs=epochs, batch=batch, rate=rate, decay=decay, seed=seed)
    return Owned(claim, model=model)


def _mosaics(many: int, shape: torch.Size, draw: torch.Generator) -> Tensor:
    """Pictures `(many, C, H, W)` of four by four blocks, or rows of any other shape, of zeros and ones."""
    if len(shape) != 3:
        return torch.randint(2, (many, *shape), generator=draw).float()
    return F.interpolate(torch.randint(2, (many, shape[0], 4, 4), generator=draw).float(), size=shape[1:])
