"""DP-SGD: every row's gradient is clipped, and noise hides what is left of it.

Abadi, Chu, Goodfellow, McMahan, Mironov, Talwar and Zhang, "Deep learning with differential privacy", CCS 2016,
https://arxiv.org/abs/1607.00133.

Every row is taken into a batch by a coin of its own (Poisson sampling, of which the accountant's bound holds); the sum
of clipped gradients with its noise is divided by the number of rows expected, and a batch without rows is noise alone.

Differs from the paper: the noise is found for the epsilon asked for, by the accounting of privacy loss distributions,
which is tighter than the paper's moments accountant; momentum, and a rate that rises and falls, which cost no privacy.

Guarantees (epsilon, delta)-differential privacy of the weights for one row added or removed, in exact arithmetic, if
nobody who is not to be trusted knows the seed: who knows it draws the same noise, and takes it off. How many
rows there are is taken to be public. Choosing between trainings by their results on the same rows is not accounted for,
and neither is what a net learnt before.

Tags: atlas:AML.T0024.000, nist-ai-100-2:NISTAML.033, owasp-ml:ML04.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from torch import nn

from buckler.accountant import calibrated, usual_delta
from buckler.data import Rows, count
from buckler.kinds import Protected
from buckler.private import Private, apart, measurable, rowwise
from buckler.train import fit, started, steps


def dp_sgd(
    data: Rows,
    *,
    net: Callable[[], nn.Module],
    epsilon: float = 8.0,
    delta: float | None = None,
    clip: float = 1.0,
    epochs: float = 30,
    batch: int = 256,
    rate: float = 0.2,
    seed: int = 0,
) -> Protected:
    """Train a network on `data`, `x` `(N, ...)` and `y` `(N,)`, so that no row shows by more than (epsilon, delta).

    `delta` is N^-1.1 if not given. `clip` is the greatest norm of a row's gradient, `batch` the rows of a batch on
    average (half of all at most). The network's batch norms become group norms. Returns it with what was spent. Raises
    `ValueError` for an epsilon, a clip or epochs not above 0, a delta outside (0, 1), a network whose answer to a row
    depends on others or on chance but dropout, or whose buffers change with rows, a training that diverges, and without
    Opacus or dp-accounting.
    """
    many = count(data)
    delta = usual_delta(many) if delta is None else delta
    batch = min(batch, max(1, many // 2))
    if not (all(0 < knob < math.inf for knob in (epsilon, clip, epochs)) and 0 < delta < 1):
        raise ValueError(
            f"expected epsilon, clip and epochs above 0, and delta between 0 and 1, got {epsilon:g}, {clip:g}, "
            f"{epochs:g} and {delta:g}"
        )
    model = rowwise(started(net, seed))
    ghost = measurable(model, data[0])
    noise, promised = calibrated(epsilon, delta, batch / many, steps(many, batch, epochs))
    private = Private(clip, noise, ghost=ghost)
    fit(model, data, loss=private, epochs=epochs, batch=batch, rate=rate, decay=0.0, seed=apart(seed))
    return Protected(model, promised, delta)
