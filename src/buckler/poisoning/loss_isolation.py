"""Loss isolation: rows that a network learns at once are suspicious.

The first stage of Li et al., "Anti-backdoor learning", NeurIPS 2021, https://arxiv.org/abs/2110.11571, as a detector;
epochs and rate of the authors' repository, https://github.com/bboylyg/ABL.

Differs from the paper: batches of 128 rows and a weight decay of 5e-4 (theirs are 64 and 1e-4); by default the lowest
5 % are flagged, not 1 %. No guarantee: poison that is learnt slowly is not found.

Tags: atlas:AML.T0020, nist-ai-100-2:NISTAML.023, owasp-ml:ML02, cwe:506.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from buckler.data import Rows, raw
from buckler.kinds import Suspicion
from buckler.poisoning._dynamics import gradient_ascent
from buckler.poisoning._isolate import isolated
from buckler.poisoning._touch import classes


def loss_isolation(
    data: Rows,
    *,
    net: Callable[[], nn.Module],
    isolate: float = 0.05,
    gamma: float = 0.5,
    epochs: float = 10,
    batch: int = 128,
    rate: float = 0.1,
    seed: int = 0,
) -> Suspicion:
    """Score the rows of `data`, `x` `(N, C, H, W)` and `y` `(N,)`, by how low their loss falls in early training.

    A fresh network is trained with local gradient ascent below `gamma`; the share `isolate` with the lowest loss is
    flagged. Raises `ValueError` for one class, or a share of no rows or of all.
    """
    rows = raw(data)
    classes(rows[1])
    loss = gradient_ascent(gamma)
    return isolated(rows, net, isolate, loss, epochs, batch, rate, seed)[1]
