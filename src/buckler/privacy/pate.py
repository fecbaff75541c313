"""PATE: teachers that share no row vote on public rows, noise hides any one vote, and a student learns what was voted.

Papernot, Abadi, Erlingsson, Goodfellow and Talwar, "Semi-supervised knowledge transfer for deep learning from private
training data", ICLR 2017, https://arxiv.org/abs/1610.05755; the Gaussian noise is that of Papernot, Song, Mironov,
Raghunathan, Talwar and Erlingsson, "Scalable private learning with PATE", ICLR 2018, https://arxiv.org/abs/1802.08908.

A row is taught to the teacher that its content and the seed say, so that one more row changes one teacher and no other.
That teacher's votes may all change: those for one class fall by one and those for another rise, on every row asked
about. All answers together are one Gaussian mechanism of sensitivity sqrt(2 queries), and its noise is exactly known
(Balle and Wang, "Improving the Gaussian mechanism for differential privacy", ICML 2018,
https://arxiv.org/abs/1805.06530).

Differs from the paper: what is promised does not depend on the votes, where the paper's smaller epsilon, of teachers
that agree, is itself private and has to be published with noise of its own; so every row is answered, confident or not.
The student learns from answered rows alone, and not, as the paper's does, from unanswered ones as well (by a GAN, or
by virtual adversarial training), which would cost nothing. 250 teachers are the paper's, of 60,000 rows.

Guarantees (epsilon, delta)-differential privacy of the student for one row of `data` added or removed, in exact
arithmetic, if nobody who is not to be trusted knows the seed or sees a teacher. The public rows are not protected: the
student may remember them. They cannot be taken out of `data`, whose rows would then be shown to the student as they
are. How many rows `data` has is taken to be public. Choosing between trainings by their results on the same rows is not
accounted for.

Tags: atlas:AML.T0024.000, nist-ai-100-2:NISTAML.033, owasp-ml:ML04.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import cast

import torch
from scipy.optimize import brentq
from scipy.special import log_ndtr
from torch import Tensor, nn
from torch.nn import functional as F

from buckler.accountant import usual_delta
from buckler.data import Rows, count, floats
from buckler.kinds import Protected
from buckler.privacy._parts import parted
from buckler.train import fit, started


def pate(
    data: Rows,
    *,
    net: Callable[[], nn.Module],
    public: Rows,
    epsilon: float = 8.0,
    delta: float | None = None,
    teachers: int = 50,
    queries: int = 100,
    epochs: float = 30,
    batch: int = 16,
    rate: float = 0.1,
    seed: int = 0,
) -> Protected:
    """Train a network on the first `queries` rows of `public`, labelled by the votes of `teachers` networks, each
    trained on rows of its own of `data`, `x` `(N, ...)` and `y` `(N,)`.

    The labels of `public` are not looked at. `delta` is N^-1.1 if not given. There is one teacher for every ten rows
    at most. Returns the network with what was spent. Raises `ValueError` for an epsilon not above 0, a delta outside
    (0, 1), no teachers, no queries and no public rows.
    """
    many, asked = count(data), floats(public[0][:queries])
    delta = usual_delta(many) if delta is None else delta
    if not (0 < epsilon < math.inf and 0 < delta < 1):
        raise ValueError(f"expected epsilon above 0, and delta between 0 and 1, got {epsilon:g} and {delta:g}")
    if teachers < 1 or queries < 1 or len(asked) < 1:
        raise ValueError(
            f"expected at least one teacher, query and public row, got {teachers}, {queries} and {len(public[0])}"
        )
    teachers = min(teachers, max(1, many // 10))
    first = seed * (teachers + 2)  # of the seeds of the teachers, the student and the noise
    student = started(net, first + teachers)
    asked = asked.to(next(student.parameters()).device)

    def taught(model: nn.Module, rows: Rows, own: int) -> nn.Module:
        return fit(model, rows, epochs=epochs, batch=batch, rate=rate, seed=own)

    votes = torch.zeros_like(_answers(student, asked), dtype=torch.float64)
    for teacher, rows in enumerate(parted(data[0], teachers, seed), first):
        if len(rows) > 1:  # who has learnt from less has no vote, which one row more or less changes by one vote
            model = taught(started(net, teacher), (data[0][rows], data[1][rows]), teacher)
            votes += F.one_hot(_answers(model, asked).argmax(1), votes.shape[1])
    draw = torch.Generator().manual_seed(first + teachers + 1)
    noise = _noise(epsilon, delta, len(asked)) * torch.randn(votes.shape, dtype=torch.float64, generator=draw)
    labels = (votes.cpu() + noise).argmax(1)
    return Protected(taught(student, (asked, labels), first + teachers), epsilon, delta)


def _answers(model: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        return model.eval()(x)


def _noise(epsilon: float, delta: float, queries: int) -> float:
    """The least standard deviation, of noise on every count of votes, at which so many answers keep the promise.

    With sensitivity over deviation r, delta is Phi(r/2 - epsilon/r) - exp(epsilon) Phi(-r/2 - epsilon/r).
    """

    def over(r: float) -> float:
        spent = math.exp(log_ndtr(r / 2 - epsilon / r)) - math.exp(epsilon + log_ndtr(-r / 2 - epsilon / r))
        return spent - delta

    high = 1.0
    while over(high) <= 0:
        high *= 2
    r = cast(float, brentq(over, high * 1e-9, high, xtol=1e-12))
    while over(r) > 0:
        r *= 1 - 1e-9
    return math.sqrt(2 * queries) / r
