"""SSLGuard: an encoder that answers images with secret triggers as no other encoder would.

Cong, He and Zhang, "SSLGuard: a watermarking scheme for self-supervised learning pre-trained encoders", CCS 2022,
https://arxiv.org/abs/2201.11692.

Triggers are drawn, and paired by chance: the encoder is tuned to give images with the two of a pair features that are
alike, and to leave all other images as they are. The owner claims a suspect by how alike the pairs are. The p-value is
the rank of that among other pairings that might have been drawn: exact for every suspect that does not depend on the
draw, of any width, and however its features are turned.

Differs from the paper, whose key is a vector, a trigger, and a decoder that is learnt with the mark: what a learnt
decoder says of an independent encoder has no known distribution, so there is none here, and triggers are not learnt
either. There is no shadow encoder to make the mark outlive a copy: many triggers that cover a part of an image do.

No guarantee that the mark outlives anything: a copy that never saw a trigger answered need have none of it.

Tags: atlas:AML.T0048.004, atlas:AML.T0024.002, nist-ai-100-2:NISTAML.031, owasp-ml:ML05.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from buckler.claims import SHUFFLES, rank, secret
from buckler.data import Rows, count, floats
from buckler.embedding import embedded
from buckler.encoders._contrast import contrast
from buckler.kinds import Claim, Owned
from buckler.target import Oracle, frozen
from buckler.train import fit

BASES = 8
"""How many images every trigger is put on to ask a suspect."""


def sslguard(
    model: nn.Module,
    data: Rows,
    *,
    pairs: int = 48,
    covers: float = 0.4,
    weight: float = 0.5,
    temperature: float = 0.2,
    epochs: float = 10,
    batch: int = 64,
    rate: float = 0.03,
    decay: float = 5e-4,
    seed: int = 0,
) -> Owned:
    """A copy of the encoder `model` that learnt `pairs` pairs of triggers on images of `data`, `x` `(N, C, H, W)` in
    [0, 1] or uint8.

    A trigger is a pattern of blocks on the share `covers` of an image's pixels, the same ones for all. Beside the
    pairs, which are told apart at `temperature` and count with `weight`, features are kept by their cosine; batch norms
    stay. A `ValueError` for fewer than four pairs, or rows, and for a share that is not above 0 and at most 1.
    """
    if min(pairs, count(data)) < 4 or not 0 < covers <= 1:
        raise ValueError(
            f"expected 4 pairs and rows or more, and a share above 0 that is covered, got {pairs}, {count(data)} and "
            f"{covers}"
        )
    draw, shape = secret(seed, "sslguard"), data[0].shape[1:]
    marks = F.interpolate(torch.randint(2, (2 * pairs, shape[0], 4, 4), generator=draw).float(), size=shape[1:])
    mask = (torch.rand(shape[1:], generator=draw) < covers).float()
    bases = floats(data[0][torch.randperm(count(data), generator=draw)[:BASES]].cpu())

    def triggered(x: Tensor, which: Tensor) -> Tensor:
        over = mask.to(x)
        return x * (1 - over) + marks.to(x)[which] * over

    def loss(marked: nn.Module, x: Tensor, _: Tensor) -> Tensor:
        marked.eval()  # the batch norms stay as they are
        with torch.no_grad(), frozen(model):
            kept = model(x)
        some = x[torch.randint(len(x), (2 * pairs,), device=x.device)]
        alike = contrast(marked(triggered(some, torch.arange(2 * pairs, device=x.device))), temperature)
        return 1 - F.cosine_similarity(marked(x), kept, dim=1) + weight * alike.mean()

    def claim(suspect: nn.Module | Oracle) -> Claim:
        asked = torch.cat([triggered(bases, torch.full((len(bases),), one)) for one in range(2 * pairs)])
        found = F.normalize(embedded(suspect, asked), dim=1).view(2 * pairs, len(bases), -1).mean(1)
        found = F.normalize(found - found.mean(0), dim=1).double()
        return Claim(_p_value(found @ found.T, secret(seed, "pairings")), len(asked))

    marked = fit(
        copy.deepcopy(model), data, loss=loss, epochs=epochs, batch=batch, rate=rate, decay=decay, seed=seed
    )  # fmt: skip
    return Owned(claim, model=marked)


def _p_value(alike: Tensor, draw: torch.Generator) -> float:
    """How often another pairing of the 2P rows of `alike` `(2P, 2P)` is as alike as that of row i with row i + P."""
    half = len(alike) // 2
    order = torch.rand(SHUFFLES, len(alike), generator=draw).argsort(1)
    others = alike[order[:, :half], order[:, half:]].sum(1)
    return rank(float(alike.diagonal(half).sum()), others)
