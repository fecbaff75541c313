"""Anti-backdoor learning: isolate the rows that are learnt at once, train on, then unlearn them.

Li, Lyu, Koren, Lyu, Li and Ma, "Anti-backdoor learning: training clean models on poisoned data", NeurIPS 2021,
https://arxiv.org/abs/2110.11571; epochs and rates of the authors' repository, https://github.com/bboylyg/ABL.

Differs from the paper: batches of 128 rows and a weight decay of 5e-4 (theirs are 64 and 1e-4), and none in unlearning;
the middle stage's rate falls along a cosine instead of in steps, and its images are moved only by the `augment` given
(theirs are cropped, flipped and cut out); unlearning stops early once the isolated rows are answered at chance, which
the paper leaves to the user. The loss is climbed row by row, as the paper has it; the repository does so by the mean of
a batch, and floods by default. No guarantee.

Tags: atlas:AML.T0020, nist-ai-100-2:NISTAML.023, owasp-ml:ML02, cwe:506.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from torch import nn

from buckler.augment import Augment
from buckler.data import Rows, raw
from buckler.kinds import Cultivated
from buckler.poisoning._dynamics import flooded, gradient_ascent
from buckler.poisoning._isolate import isolated
from buckler.poisoning._touch import classes
from buckler.poisoning._unlearn import ascend
from buckler.train import cosine, fit, lasting


def abl(
    data: Rows,
    *,
    net: Callable[[], nn.Module],
    isolate: float = 0.01,
    trap: Literal["ascent", "flooding"] = "ascent",
    gamma: float = 0.5,
    epochs: tuple[float, float, float] = (10, 60, 5),
    batch: int = 128,
    rate: float = 0.1,
    unlearn: float = 5e-4,
    augment: Augment | None = None,
    seed: int = 0,
) -> Cultivated:
    """Train a model from `data`, `x` `(N, C, H, W)` and `y` `(N,)`, that unlearns the rows it learnt first.

    `epochs` are those of the three stages: isolation (with local gradient ascent below a loss of `gamma`, or flooding),
    training on the rows that are not isolated, and gradient ascent on the share `isolate` that is, at the rate
    `unlearn`. Returns the model, the suspicion (minus the loss after isolation) and the first stage's dynamics. Raises
    `ValueError` for one class, or a share of no rows or of all.
    """
    x, y = raw(data)
    classes(y)
    lasting(*epochs)
    loss = gradient_ascent(gamma) if trap == "ascent" else flooded(gamma)
    model, suspicion, dynamics = isolated((x, y), net, isolate, loss, epochs[0], batch, rate, seed)
    flagged = suspicion.flagged
    rest = (x[~flagged], y[~flagged])
    fit(model, rest, epochs=epochs[1], batch=batch, rate=cosine(rate), augment=augment, seed=seed + 1)
    ascend(model, (x[flagged], y[flagged]), epochs=round(epochs[2]), rate=unlearn, batch=batch, seed=seed + 2)
    return Cultivated(model, suspicion, dynamics)
