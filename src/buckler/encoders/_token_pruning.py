"""A vision transformer that goes on with those tokens only that get enough attention: what a query costs depends on it.

Kim, Shen, Thorsley, Gholami, Kwon, Hassoun and Keutzer, "Learned token pruning for transformers", KDD 2022,
https://arxiv.org/abs/2107.00910; here thresholds are quantiles of what honest images show, and not learnt.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from buckler.data import floats
from buckler.nets import TransformerBlock, VisionTransformer, where
from buckler.target import frozen

WITHIN = 0.05
"""By which share more than the threshold a token is to get of attention."""


class TokenPruned(nn.Module):
    """`net`, of whose tokens those go on behind the attention of a block that get the share in `least` `(blocks,)` of
    all attention at least, a mean over heads and over the tokens that are left; the one that gathers always does. Of
    them the `most` `(blocks,)` go on that get most."""

    def __init__(self, net: VisionTransformer) -> None:
        super().__init__()
        self.net = net
        self.least = nn.Buffer(torch.zeros(len(net.blocks)))
        self.most = nn.Buffer(torch.full((len(net.blocks),), net.places.shape[1]))

    def run(self, x: Tensor) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        """The features `(B, D)`; which tokens each block is given, and, last, which are left `(B, T)`; and how much
        attention each token gets in each block `(B, T)`."""
        tokens = self.net.tokens(x)
        there, left, got = torch.ones_like(tokens[..., 0], dtype=torch.bool), list[Tensor](), list[Tensor]()
        for block, least, most in zip(self.net.blocks, self.least, self.most.tolist(), strict=True):
            assert isinstance(block, TransformerBlock)
            left.append(there)
            tokens, looks = block.attended(tokens, there)
            got.append((looks * there[:, :, None]).sum(1) / there.sum(1, keepdim=True))
            there = there & ~(got[-1] < least)  # what is not a number stays, and costs
            there[:, 0] = True
            if most < there.shape[1]:
                rank = got[-1].masked_fill(~there, -1).index_fill(1, there.new_zeros(1, dtype=torch.long), 2)
                there = there & torch.zeros_like(there).scatter(1, rank.topk(most).indices, True)
            tokens = block.fed(tokens)
        return self.net.norm(tokens[:, 0]), [*left, there], got

    def forward(self, x: Tensor) -> Tensor:
        return self.run(x)[0]

    def spent(self, x: Tensor) -> Tensor:
        """The multiplications that each row takes, where the encoder that keeps all tokens takes 1: `(B,)`."""
        with torch.no_grad():
            left = [there.sum(1).double() for there in self.run(x)[1]]
        whole = [torch.full_like(many, self.net.places.shape[1]) for many in left]
        return (self._work(left) / self._work(whole)).float()

    def _work(self, left: list[Tensor]) -> Tensor:
        """The multiplications of a row by the number of tokens that each block is given: four square layers for each
        token and what tokens look at, then two layers four times as wide for each that is left."""
        wide, places = self.net.places.shape[2], self.net.places.shape[1]
        work = torch.full_like(left[0], (places - 1) * self.net.patches.weight.numel())
        for given, kept in zip(left, left[1:], strict=False):
            work = work + 4 * given * wide**2 + 2 * given**2 * wide + 8 * kept * wide**2
        return work

    def pressure(self, x: Tensor) -> Tensor:
        """What grows with the cost, and has a slope: how near tokens that lack attention are to enough, `(B,)`."""
        _, left, got = self.run(x)
        lacks = [
            (F.relu(least * (1 + WITHIN) - share) * there).sum(1) / least.clamp_min(1e-9)
            for there, share, least in zip(left, got, self.least, strict=False)
        ]
        return -torch.stack(lacks).sum(0)

    @contextmanager
    def capped(self, x: Tensor) -> Generator[None, None, None]:
        """Inside the block no query goes on with more tokens than one of `x` `(N, C, H, W)` does in the mean."""
        before = self.most.clone()
        with torch.no_grad(), frozen(self):
            left = [torch.stack([there.sum(1) for there in self.run(part)[1][1:]]) for part in x.split(512)]
        self.most.copy_(torch.cat(left, 1).double().mean(1).floor().clamp_min(1))
        try:
            yield
        finally:
            self.most.copy_(before)


def token_pruned(net: VisionTransformer, x: Tensor, *, leave: float = 0.3) -> TokenPruned:
    """`net` served with token pruning: behind each block but the last, of the tokens of `x` `(N, C, H, W)` that are
    left, the share `leave` that gets the least attention goes."""
    served = TokenPruned(net)
    x = floats(x).to(where(net))
    with torch.no_grad(), frozen(served):
        for place in range(len(net.blocks) - 1):
            shares = list[Tensor]()
            for part in x.split(512):
                _, left, got = served.run(part)
                shares.append(got[place][:, 1:][left[place][:, 1:]])
            served.least[place] = torch.cat(shares).quantile(leave)
    return served
