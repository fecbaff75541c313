"""DFME, data-free model extraction: a generator finds inputs on which copy and victim disagree.

Truong, Maini, Walls and Papernot, "Data-free model extraction", CVPR 2021, https://arxiv.org/abs/2011.14779.

Differs from the paper: copy and generator learn in the library's one loop, by Adam with one rate; the generator's
gradient is a forward difference of the whole loss, the copy's term too; the generator is a small network of linear
layers; defaults are for thousands of questions, where the paper asks millions (20 million for
CIFAR-10, 2 million for SVHN): a baseline.

Tags: atlas:AML.T0024.002, atlas:AML.T0005.001, atlas:AML.T0040, nist-ai-100-2:NISTAML.031, owasp-ml:ML05.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from functools import partial
from math import prod

import torch
from torch import Tensor, nn

from buckler.kinds import Copy
from buckler.target import QueryBudgetExceeded, ScoreOracle, frozen
from buckler.theft._thief import begun
from buckler.train import fit, started

LATENT, WIDTH, SMALL = 64, 256, 1e-7
"""The generator's inputs and width, and the least that a probability is taken as."""


def data_free(
    oracle: ScoreOracle,
    pool: Tensor,
    *,
    net: Callable[[], nn.Module],
    most: int = 20_000,
    lessons: int = 5,
    reach: float = 1e-3,
    batch: int = 64,
    rate: float = 1e-3,
    seed: int = 0,
) -> Copy:
    """Train `net()` where a generator makes it differ from the oracle, asking `most` times or as the budget allows.

    Of `pool` `(N, ...)` only the shape of a row is used. In turn the generator takes one step up the l1 distance of
    logits, whose gradient in the input, of victim and copy together, is a forward difference `reach` long in one random
    direction with the copy evaluating, and the copy takes `lessons` steps down it. Logits are log-probabilities less
    their mean. Returns the copy, evaluating. A `ValueError` for an empty pool, or an oracle that reveals labels only.
    """
    if oracle.reveals == "labels":
        raise ValueError("expected an oracle that reveals scores, got one that reveals labels only: try theft/copycat")
    copy = begun(net, pool, seed)
    generator = started(partial(_generator, tuple(pool.shape[1:])), seed).to(pool.device)
    asked = most if oracle.budget is None else min(most, oracle.budget - oracle.asked)
    turns, left = divmod(asked // batch, 2 + lessons)
    order = iter(plan := ([True] + [False] * lessons) * turns + [False] * left)

    def loss(_: nn.Module, latent: Tensor, _y: Tensor) -> Tensor:
        if next(order):
            raw = generator(latent)
            return -(_slope(raw.detach(), copy, oracle, reach) * raw).flatten(1).sum(1)
        x = _shown(generator(latent).detach())
        return _apart(oracle, copy, x)

    if plan:
        latent = torch.randn(len(plan) * batch, LATENT, generator=torch.Generator().manual_seed(seed)).to(pool.device)
        lesson, pair = (latent, latent), nn.ModuleList([copy, generator])
        with suppress(QueryBudgetExceeded):  # that of an oracle behind this one
            fit(pair, lesson, loss=loss, epochs=1, batch=batch, rate=rate, optimizer="adam", decay=0.0, seed=seed)
    return copy.eval()


def _generator(shape: tuple[int, ...]) -> nn.Module:
    """From latent draws `(B, 64)` to inputs `(B, ...)` as they are before they are brought into [0, 1]."""
    return nn.Sequential(
        nn.Linear(LATENT, WIDTH),
        nn.BatchNorm1d(WIDTH),
        nn.LeakyReLU(0.2),
        nn.Linear(WIDTH, prod(shape)),
        nn.BatchNorm1d(prod(shape), affine=False),
        nn.Unflatten(1, shape),
    )


def _shown(raw: Tensor) -> Tensor:
    return raw.tanh() / 2 + 0.5


def _apart(oracle: ScoreOracle, copy: nn.Module, x: Tensor) -> Tensor:
    """The l1 distance between the logits of the oracle and of a copy, each less their mean: `(B,)`."""
    answers = oracle(x)
    logits = answers if oracle.reveals == "logits" else answers.clamp_min(SMALL).log()
    copied = copy(x)
    return (copied - copied.mean(1, keepdim=True) - logits + logits.mean(1, keepdim=True)).abs().sum(1)


@torch.no_grad()
def _slope(raw: Tensor, copy: nn.Module, oracle: ScoreOracle, reach: float) -> Tensor:
    """The gradient in `raw` `(B, ...)` of how far the copy is from the oracle, by one difference along a direction."""
    way = torch.randn_like(raw)
    way = way / way.flatten(1).norm(dim=1).view(-1, *[1] * (raw.ndim - 1)).clamp_min(1e-12)
    with frozen(copy):  # dropout would differ between the two
        here, there = (_apart(oracle, copy, x) for x in (_shown(raw), _shown(raw + reach * way)))
    return raw[0].numel() * ((there - here) / reach).view(-1, *[1] * (raw.ndim - 1)) * way
