"""What thieves of an encoder share: asking for features within a budget, and a network as wide as what is answered."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from buckler.data import floats
from buckler.target import Oracle
from buckler.train import started


def ask(oracle: Oracle, pool: Tensor, seed: int) -> Tensor:
    """As many rows of `pool` `(N, C, H, W)`, drawn by `seed`, as the budget allows, each once, in [0, 1]: `(n, ...)`.

    A `ValueError` for fewer than two: of one row nothing can be learnt that tells it from others.
    """
    left = len(pool) if oracle.budget is None else oracle.budget - oracle.asked
    order = torch.randperm(len(pool), generator=torch.Generator().manual_seed(seed))[: max(0, left)]
    if len(order) < 2:
        raise ValueError(f"expected a pool and a budget of two rows or more, got {len(pool)} and {left}")
    return floats(pool[order.to(pool.device)])


def begun(net: Callable[[], nn.Module], x: Tensor, width: int, seed: int) -> nn.Module:
    """The thief's network untrained, where `x` is, with a linear layer above it where it has not `width` features."""
    body = started(net, seed).to(x.device)
    with torch.no_grad():
        own = body.eval()(x[:2]).shape[1]
    if own == width:
        return body
    return nn.Sequential(body, started(lambda: nn.Linear(own, width), seed).to(x.device))
