"""Copycat CNN: a network that learns nothing but the labels that a victim says.

Correia-Silva, Berriel, Badue, de Souza and Oliveira-Santos, "Copycat CNN: stealing knowledge by persuading confession
with random non-labeled data", IJCNN 2018, https://arxiv.org/abs/1806.05476.

Differs from the paper: the network starts untrained, and rows are not repeated to balance the labels; training is the
library's one loop.

Tags: atlas:AML.T0024.002, atlas:AML.T0005.001, atlas:AML.T0040, nist-ai-100-2:NISTAML.031, owasp-ml:ML05.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from buckler.kinds import Copy
from buckler.target import LabelOracle
from buckler.theft._thief import ask, begun, taught


def copycat(
    oracle: LabelOracle,
    pool: Tensor,
    *,
    net: Callable[[], nn.Module],
    epochs: float = 100,
    batch: int = 32,
    rate: float = 0.1,
    seed: int = 0,
) -> Copy:
    """Ask for the labels of rows of `pool` `(N, ...)` in [0, 1], drawn by `seed`, each once, and train `net()` on them.

    Returns the copy, evaluating; where the oracle's budget is less than the pool, it is spent. A `ValueError` for an
    empty pool.
    """
    copy = begun(net, pool, seed)
    order = torch.randperm(len(pool), generator=torch.Generator().manual_seed(seed)).to(pool.device)
    x, answers = ask(oracle, pool[order])
    labels = answers if answers.ndim == 1 else answers.argmax(1)
    return taught(copy, (x, labels), epochs=epochs, batch=batch, rate=rate, seed=seed) if len(x) else copy
