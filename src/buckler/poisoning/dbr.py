"""Sensitivity: rows whose features a transformation changes most are unlearnt, those it changes least are relearnt.

Chen, Wu and Wang, "Effective backdoor defense by exploiting sensitivity of poisoned samples", NeurIPS 2022,
https://openreview.net/forum?id=AsH-Tx2U0Ug; settings of the authors' repository,
https://github.com/SCLBD/Effective_backdoor_defense. This is their D-BR: sample distinguishment (SD), then backdoor
removal (BR).

A network is trained for two epochs, and then only to push the centres of the labels' features apart. The features of a
poisoned row hang on its trigger, so that they move further when the image is turned and shifted (feature consistency
towards transformations, FCT).

Differs from the paper: the rows that are relearnt are the most consistent ones of every label, not of all rows
together, which may lack whole classes; consistency is the mean over several transformations. The authors keep the
epoch of the best test accuracy less test attack success rate, which no defender has. Here only training rows decide:
unlearning pauses while the suspected rows are answered at chance or below, and the round that is kept answers the rows
that are not suspected best, less how it answers those that are. No guarantee: on clean data the least consistent rows
are unlearnt all the same.

Tags: atlas:AML.T0020, nist-ai-100-2:NISTAML.023, owasp-ml:ML02, cwe:506.
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from buckler.augment import Augment, turned
from buckler.data import Rows, floats
from buckler.kinds import Cultivated, Suspicion
from buckler.poisoning._dynamics import Watched, numbered
from buckler.poisoning._isolate import highest
from buckler.poisoning._look import accuracy, features, inputs_of, last_linear, outputs
from buckler.poisoning._touch import classes, images
from buckler.poisoning._unlearn import climb
from buckler.train import constant, fit, lasting, started

TURNED: Augment = turned(180, shift=0.2)
"""The authors' transformation: any rotation, and a shift of up to a fifth of the side."""


def dbr(
    data: Rows,
    *,
    net: Callable[[], nn.Module],
    poisoned: float = 0.05,
    clean: float = 0.2,
    epochs: tuple[float, float, float, float] = (2, 10, 200, 20),
    batch: int = 128,
    rate: float = 0.01,
    unlearn: float = 1e-4,
    transform: Augment = TURNED,
    draws: int = 4,
    augment: Augment | None = None,
    seed: int = 0,
) -> Cultivated:
    """Train a model from `data`, `x` `(N, C, H, W)` and `y` `(N,)`; unlearn the rows that transformations change most.

    `epochs` are those of early training, of pushing the labels apart, of training the model (with `augment`), and the
    rounds of unlearning the share `poisoned` and relearning the share `clean` at the rate `unlearn`. Consistency is the
    mean over `draws` of `transform`. Returns the model, the suspicion (how far features move; flagged is what was to be
    unlearnt) and the dynamics of training the model. Raises `ValueError` for one class, shares of no rows or of more
    than there are, or a model without a linear layer.
    """
    x, y = images(data)
    classes(y)
    many = round(poisoned * len(y))
    if not (many >= 1 and clean > 0 and many + clean * len(y) <= len(y)):
        raise ValueError(
            f"expected shares to unlearn and relearn that are one row or more and all rows at most, "
            f"got {poisoned} and {clean} of {len(y)} rows"
        )
    lasting(*epochs)
    early = started(net, seed)
    outputs(early, (x, y))
    last_linear(early)
    fit(early, (x, y), epochs=epochs[0], batch=batch, rate=constant(rate), seed=seed)
    fit(early, (x, y), loss=_centres_alike, epochs=epochs[1], batch=batch, rate=constant(rate), seed=seed + 1)
    score = _inconsistency(early, x, transform, draws, seed)
    suspected = highest(score, many)
    trusted = _consistent(score.masked_fill(suspected, torch.inf), y, clean) & ~suspected
    model, watched = started(net, seed + 2), Watched(y)
    fit(
        model, numbered(x), loss=watched, epochs=epochs[2], batch=batch, rate=lambda done: rate * _stepped(done),
        augment=augment, seed=seed + 2,
    )  # fmt: skip
    parts = ((x[suspected], y[suspected]), (x[trusted], y[trusted]), (x[~suspected], y[~suspected]))
    model = _removed(model, *parts, round(epochs[3]), batch, unlearn, augment, seed + 3)
    return Cultivated(model, Suspicion(score, suspected), watched.record)


def _inconsistency(model: nn.Module, x: Tensor, transform: Augment, draws: int, seed: int) -> Tensor:
    """The mean squared change of every row's features under `draws` of `transform`: `(N,)`."""
    nothing = torch.zeros(len(x), dtype=torch.long)
    before = features(model, (x, nothing))
    total = torch.zeros(len(x))
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        for _ in range(draws):
            for rows in torch.arange(len(x)).split(512):
                moved = features(model, (transform(floats(x[rows])).clamp(0, 1), nothing[rows]))
                total[rows] += (moved - before[rows]).square().mean(1)
    return total / draws


def _centres_alike(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """The mean cosine between the centres of the labels' features in this batch, which training is to lower."""
    with inputs_of(last_linear(model)) as seen:
        model(x)
    said = F.one_hot(y)[:, y.unique()].to(seen[-1].dtype)
    centres = F.normalize(said.T @ seen[-1].flatten(1) / said.sum(0)[:, None], dim=1)
    near = centres @ centres.T
    return (near - near.diag().diag()).mean()


def _consistent(score: Tensor, y: Tensor, share: float) -> Tensor:
    """Of every label the `share` of rows with the lowest score, one at least: `(N,)` booleans."""
    chosen = torch.zeros(len(y), dtype=torch.bool)
    for label in y.unique():
        rows = (y == label).nonzero().squeeze(1)
        chosen[rows[score[rows].topk(max(1, int(share * len(rows))), largest=False).indices]] = True
    return chosen


def _stepped(done: float) -> float:
    return 1.0 if done < 0.5 else 0.1 if done < 0.75 else 0.01


def _removed(
    model: nn.Module,
    suspected: Rows,
    trusted: Rows,
    rest: Rows,
    rounds: int,
    batch: int,
    rate: float,
    augment: Augment | None,
    seed: int,
) -> nn.Module:
    """Rounds of climbing the loss of `suspected` and descending that of `trusted`, in place; the best round's model.

    `rest` are all rows that are not suspected. What is best is said by training rows only.
    """
    chance = 1.0 / (int(rest[1].max()) + 1)
    kept, best = copy.deepcopy(model.state_dict()), accuracy(model, rest) - accuracy(model, suspected)
    for turn in range(rounds):
        if accuracy(model, suspected) > chance:
            fit(
                model, suspected, loss=climb, epochs=1, batch=batch, rate=constant(rate), augment=augment,
                seed=seed + 2 * turn,
            )  # fmt: skip
        fit(
            model, trusted, epochs=1, batch=batch, rate=constant(rate), augment=augment, seed=seed + 2 * turn + 1
        )  # fmt: skip
        worth = accuracy(model, rest) - accuracy(model, suspected)
        if worth > best:
            kept, best = copy.deepcopy(model.state_dict()), worth
    model.load_state_dict(kept)
    return model
