"""Data tracing: an owner of images shows that an encoder learnt from them, by the views that EncoderMI looks at.

Liu, Jia, Qu and Gong, "EncoderMI: membership inference against pre-trained encoders in contrastive learning",
CCS 2021, https://arxiv.org/abs/2108.11023, which proposes it for audits by data owners.

The owner divides images by chance, publishes the one part and keeps the other back. A suspect is asked for the features
of some views of all; if those of an image are more alike where it was published, the suspect learnt from what was
published. With a `reference`, an encoder that learnt from neither part, what it shows of the same views is
taken off first, which makes the test stronger.

The p-value is the rank of the true division among divisions drawn by chance. It is exact if the division was by chance
and the suspect does not depend on it, whatever else the suspect is: nothing is assumed of features, and no shadow
encoder decides it. It says that the suspect learnt from published images, not by which way it came to them.

Differs from the paper: a test of all images together, with a p-value, instead of an answer for every one; cosines are
taken less those to views of other images. No guarantee
that an encoder that learnt from the images is claimed: one that saw them seldom shows them hardly at all.

Tags: atlas:AML.T0024.000, nist-ai-100-2:NISTAML.033, owasp-ml:ML04.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from buckler.claims import secret, shuffled
from buckler.data import Rows, as_tensors, count
from buckler.dice import fingerprint_rows
from buckler.encoders._shadowed import alike, beyond
from buckler.kinds import Claim, Owned
from buckler.method import held
from buckler.nets import where
from buckler.target import Oracle

OTHERS = 50
"""Of the images so many, published or not, are what views of all are compared with."""


def data_tracing(
    data: Rows,
    *,
    unseen: Rows,
    reference: nn.Module | None = None,
    asked: int = 10,
    least: float = 0.5,
    seed: int = 0,
) -> Owned:
    """What the owner of the published `data` and of images `unseen` by others, both `(N, C, H, W)`, claims encoders by.

    Both are uint8 or in [0, 1], and labels are not looked at; the suspect is asked about `asked` views of each, crops
    of at least the share `least`. Raises `ValueError` for fewer than eight images of either, what are no images, and
    fewer than two views; the claim, for a suspect that gives no finite features.
    """
    if min(count(data), count(unseen)) < 8:
        raise ValueError(f"expected eight images of either part or more, got {count(data)} and {count(unseen)}")
    x = torch.cat([as_tensors(data)[0], as_tensors(unseen)[0]])
    order = fingerprint_rows(x).argsort()  # so that nothing but the images decides what they are shown with
    x, member = x[order], order < count(data)

    def score(encoder: nn.Module | Oracle) -> Tensor:
        shown = x if isinstance(encoder, Oracle) else x.to(where(encoder))
        return alike(encoder, shown, asked=asked, least=least, seed=seed, others=shown[:OTHERS])

    usual = None if reference is None else score(reference)

    def claim(suspect: nn.Module | Oracle) -> Claim:
        found = score(held("features", suspect) if isinstance(suspect, Oracle) else suspect)
        found = found if usual is None else beyond(found, usual, torch.ones(len(x), dtype=torch.bool))
        return Claim(shuffled(found.mean(1), member, secret(seed, "data_tracing")), asked * (len(x) + len(x[:OTHERS])))

    return Owned(claim)
