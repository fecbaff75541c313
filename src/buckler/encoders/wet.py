"""WET: features are answered through a secret linear transformation, which copies of the answers have as well.

Shetty, Xu and Lau, "WET: overcoming paraphrasing vulnerabilities in embeddings-as-a-service with linear transformation
watermarks", ACL 2025, https://arxiv.org/abs/2409.04459.

The owner claims a suspect by how alike its features are to the secret ones. The p-value is the rank of that among other
transformations that might have been drawn: exact for every suspect that does not depend on the draw, whatever it learnt
from and however like the owner's encoder it is.

Differs from the paper, which draws sparse circulant matrices for embeddings of text: the transformation is a
permutation, which costs honest users nothing, because a linear probe learns the same above it; and it is a layer of the
encoder, so that one who takes the weights has it too.

No guarantee: who turns the copy's features again, which costs nothing either, is rid of it, and a suspect with another
number of features is not claimed.

Tags: atlas:AML.T0048.004, atlas:AML.T0024.002, nist-ai-100-2:NISTAML.031, owasp-ml:ML05.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from buckler.claims import SHUFFLES, rank, secret
from buckler.data import Rows, as_tensors, count
from buckler.embedding import embedded
from buckler.kinds import Claim, Owned
from buckler.nets import where
from buckler.target import Oracle


def wet(model: nn.Module, data: Rows, *, most: int = 200, seed: int = 0) -> Owned:
    """The encoder `model` with its features in a secret order; claims ask about `most` rows of `data`, `x`
    `(N, C, H, W)` in [0, 1] or uint8. A `ValueError` for fewer than two rows."""
    if min(count(data), most) < 2:
        raise ValueError(f"expected two rows or more to ask a suspect about, got {min(count(data), most)}")
    x, _ = as_tensors(data, torch.randperm(count(data), generator=secret(seed, "rows"))[:most])
    own = _less_mean(embedded(model, x))
    order = torch.randperm(own.shape[1], generator=secret(seed, "wet"))

    def claim(suspect: nn.Module | Oracle) -> Claim:
        answers = _less_mean(embedded(suspect, x))
        if answers.shape != own.shape:
            return Claim(1.0, len(x))
        return Claim(_p_value(answers.T.double() @ own.double(), order, secret(seed, "shuffles")), len(x))

    ordered = nn.Sequential(copy.deepcopy(model), _Ordered(order)).to(where(model))
    return Owned(claim, model=ordered.eval())


class _Ordered(nn.Module):
    """Features `(B, D)` in another `order` `(D,)`."""

    def __init__(self, order: Tensor) -> None:
        super().__init__()
        self.order = nn.Buffer(order)

    def forward(self, features: Tensor) -> Tensor:
        return features[:, self.order]


def _p_value(gains: Tensor, order: Tensor, draw: torch.Generator) -> float:
    """How often another order fits as well: `gains` `(D, D)` are of every feature by every secret one."""
    many = torch.arange(len(gains))
    orders = torch.rand(SHUFFLES, len(gains), generator=draw).argsort(1)
    return rank(float(gains[many, order].sum()), gains[many, orders].sum(1))


def _less_mean(features: Tensor) -> Tensor:
    return features - features.mean(0)
