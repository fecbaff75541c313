"""SCRUB: a student obeys its teacher on the rows that stay, and disobeys on the rows that are to be forgotten.

Kurmanji, Triantafillou, Hayes and Triantafillou, "Towards unbounded machine unlearning", NeurIPS 2023,
https://arxiv.org/abs/2302.09880.

The model itself is both. Passes over the rows to be forgotten, which raise the divergence of the student's answers
from the teacher's, alternate with passes over the rest, which lower it and the cross-entropy; the last ones are of the
second kind alone. As in the paper's form for privacy (SCRUB+R), the student is kept after every pass, and the one is
taken to which forgotten rows look most like rows that nobody learnt from: forgetting too much shows too.

Differs from the paper: what such rows look like is told by the mean loss of `public` rows, not by an error, because
membership is told by losses; and by the teacher's, not the last student's. What the rows that stay have lost counts
against a student as well, because one that has fallen apart loses as much on all rows. Answers are compared at
temperature 1, where the paper takes 4, at which small networks fall apart.

No guarantee: nothing bounds what is left of the rows. On average they may look as if never seen while each of them is
still told by who knows how it would be answered.

Tags: atlas:AML.T0024.000, nist-ai-100-2:NISTAML.033, owasp-ml:ML04.
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from buckler.data import Rows, as_tensors, batches, count
from buckler.kinds import Forgotten
from buckler.privacy._forgotten import staying
from buckler.target import frozen
from buckler.train import constant, fit, started

FORWARD = 1 / 3
"""What asking for an answer costs, of learning from a row: a pass forth against one forth and one back."""


def scrub(
    data: Rows,
    forget: Tensor,
    *,
    net: Callable[[], nn.Module],
    public: Rows,
    rounds: int = 10,
    disobeyed: int = 5,
    heat: float = 1.0,
    step: float = 0.07,
    epochs: float = 30,
    batch: int = 64,
    rate: float = 0.1,
    seed: int = 0,
) -> Forgotten:
    """Train a network on `data`, `x` `(N, ...)` and `y` `(N,)`, and forget the rows whose numbers `forget` `(M,)` is.

    Of `rounds` passes over the rows that stay the first `disobeyed` follow one over the others; their rate is `step`,
    and answers are compared at temperature `heat`. `public` are rows alike that nobody learnt from. Training takes
    `epochs`, batches and a rate of its own. Returns the network before and after. Raises `ValueError` for numbers of no
    row, for no row that stays, and for no round.
    """
    many = count(data)
    if rounds < 1 or epochs <= 0 or not 0 <= disobeyed <= rounds:
        raise ValueError(
            f"expected a round or more, no more disobeyed, and epochs, got {rounds}, {disobeyed}, {epochs}"
        )
    gone = ~staying(forget, many)
    if bool(gone.all()):
        raise ValueError(f"expected rows that stay, got {many} of {many} to forget: begin with a new network")
    teacher = fit(started(net, seed), data, epochs=epochs, batch=batch, rate=rate, seed=seed)
    if not bool(gone.any()):
        return Forgotten(teacher, copy.deepcopy(teacher), 0.0)
    told = _answers(teacher, data)
    x, y = data[0], data[1].to(told.device)

    def away(model: nn.Module, rows: Tensor, at: Tensor) -> Tensor:
        return -_divergence(model(rows), told[at], heat)

    def near(model: nn.Module, rows: Tensor, at: Tensor) -> Tensor:
        said = model(rows)
        return F.cross_entropy(said, y[at], reduction="none") + _divergence(said, told[at], heat)

    forgotten = int(gone.sum())
    hidden, left = ((x[side][:forgotten], data[1][side][:forgotten]) for side in (gone, ~gone))
    unseen, learnt = _loss(teacher, public), _loss(teacher, left)
    student, kept = copy.deepcopy(teacher), list[tuple[float, nn.Module]]()
    for turn in range(rounds):
        for side, loss, wanted in ((gone, away, turn < disobeyed), (~gone, near, True)):
            if wanted:
                at = side.nonzero().squeeze(1)
                fit(student, (x[at], at), loss=loss, epochs=1, batch=batch, rate=constant(step), seed=seed + turn)
        apart = abs(_loss(student, hidden) - unseen) + abs(_loss(student, left) - learnt)
        kept.append((apart, copy.deepcopy(student)))
    after = min(kept, key=lambda one: one[0])[1]
    asked = many + (1 + 2 * rounds) * forgotten + count(public)
    work = disobeyed * forgotten + rounds * (many - forgotten) + FORWARD * asked
    return Forgotten(teacher, after, work / (epochs * (many - forgotten)))


def _divergence(said: Tensor, told: Tensor, heat: float) -> Tensor:
    """KL(teacher, student) per row at a temperature, times its square, so that gradients keep their size: `(B,)`."""
    pair = (said / heat).log_softmax(1), (told / heat).log_softmax(1)
    return heat**2 * F.kl_div(*pair, reduction="none", log_target=True).sum(1)


def _answers(model: nn.Module, data: Rows) -> Tensor:
    """The logits `(N, K)` of all rows."""
    where = list(model.parameters())[0].device
    with torch.no_grad(), frozen(model):
        return torch.cat([model(x.to(where)) for x, _ in batches(data, 1024)])


def _loss(model: nn.Module, data: Rows) -> float:
    """The mean cross-entropy."""
    said, (_, y) = _answers(model, data), as_tensors(data)
    return float(F.cross_entropy(said, y.to(said.device)))
