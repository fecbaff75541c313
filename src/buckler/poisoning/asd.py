"""Adaptive splitting: from a few trusted rows to half of the data, and then away from what is learnt too easily.

Gao, Bai, Gu, Yang and Xia, "Backdoor defense via adaptively splitting poisoned dataset", CVPR 2023,
https://arxiv.org/abs/2303.12993; settings of the authors' repository, https://github.com/KuofengGao/ASD.

MixMatch throughout, with three splits into rows whose labels are trusted and rows whose labels are dropped: first by
class, some more rows of the lowest loss every few epochs; then the half of all rows with the lowest loss; last the half
whose loss falls least when a copy of the model is trained on all rows for an epoch (meta-split), because poisoned rows
are learnt in no time.

Differs from the paper: the defender's `clean` rows, ten of every class in the paper, are optional. Without them the
first trusted rows are drawn from the third quarter of their class by loss, after early training on all rows with local
gradient ascent: poison that is learnt at once is below them, false labels that are not learnt are above. The copy is
trained in the later half of its layers, whatever the architecture. No guarantee: above all, without clean rows the
first trusted ones may be poisoned.

Tags: atlas:AML.T0020, nist-ai-100-2:NISTAML.023, owasp-ml:ML02, cwe:506.
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn

from buckler.augment import Augment
from buckler.data import Rows, floats, held_as, raw
from buckler.kinds import Cultivated, Suspicion
from buckler.poisoning._dynamics import Watched, gradient_ascent, numbered
from buckler.poisoning._look import logits, losses, outputs
from buckler.poisoning._mixmatch import MOVED, Mixing, mixmatch
from buckler.poisoning._split import Splits, lowest, lowest_of_each, symmetric
from buckler.poisoning._touch import classes, images
from buckler.train import constant, fit, lasting, started


def asd(
    data: Rows,
    *,
    net: Callable[[], nn.Module],
    clean: Rows | None = None,
    seeds: int = 10,
    trust: float = 0.5,
    epochs: tuple[int, int, int, int] = (10, 60, 30, 30),
    grow: tuple[int, int] = (5, 10),
    iterations: int | None = 1024,
    batch: tuple[int, int] = (64, 128),
    rate: tuple[float, float] = (2e-3, 0.015),
    augment: Augment = MOVED,
    seed: int = 0,
) -> Cultivated:
    """Train a model from `data`, `x` `(N, C, H, W)` and `y` `(N,)`, on the labels that it has come to trust.

    `clean` rows are trusted throughout; without them `seeds` rows of every class are trusted at first. `epochs` are
    those of the early training that finds these (not run if there are clean rows) and of the three splits; in the first
    of these, `grow` is every how many epochs how many more rows of a class are trusted; the other two trust the share
    `trust`. MixMatch's epoch is `iterations` steps, or one pass if none are given; `batch` and `rate`
    are MixMatch's and those of the copy in the third. Returns the model, the suspicion (what the last split ranked by;
    flagged are rows that were not trusted and that the model contradicts) and dynamics: of every epoch the loss,
    confidence, agreement and trust. Raises `ValueError` for one class, a class with fewer rows than `seeds`, clean rows
    that lack a class or have another shape, no epochs, or a share of no rows or of all.
    """
    x, y = images(data)
    many, stages = len(y), epochs[1:]
    lowest(torch.zeros(many), trust)  # a share that cannot be split is said before anything is trained
    lasting(*epochs)
    if sum(stages) < 1 or grow[0] < 1:
        raise ValueError(f"expected at least one epoch of splits, and to grow every one or more, got {epochs}, {grow}")
    model = started(net, seed)
    outputs(model, (x, y))
    if clean is not None:
        extra, labels = _like(clean, x, classes(y))
        x, y = torch.cat([x, extra]), torch.cat([y, labels])
        first = given = torch.arange(len(y)) >= many
    else:
        classes(y)
        first, given = _middling((x, y), net, seeds, epochs[0], batch[1], seed), torch.zeros(many, dtype=torch.bool)
    splits = Splits(model, (x, y))

    def trusted(epoch: int) -> Tensor:
        score = splits.disagreement()
        if epoch < stages[0]:
            more = lowest_of_each(score.masked_fill(first, torch.inf), y, epoch // grow[0] * grow[1])
            return splits.keep(score, first | more)
        if epoch >= stages[0] + stages[1]:
            score = score - _soon(model, (x, y), batch[1], rate[1], seed + epoch)
        return splits.keep(score, given | lowest(score, trust))

    mixmatch(
        model, (x, y), trusted, epochs=sum(stages), batch=batch[0], iterations=iterations,
        mixing=Mixing(ramp=sum(stages)), augment=augment, rate=rate[0], seed=seed + 1,
    )  # fmt: skip
    score, flagged = splits.suspicion()
    dynamics = {name: record[:, :many] for name, record in splits.dynamics.items()}
    return Cultivated(model, Suspicion(score[:many], flagged[:many]), dynamics)


def _like(clean: Rows, x: Tensor, many: int) -> Rows:
    """The clean rows as `x` holds its own; a `ValueError` if they are of another shape, or lack a class."""
    extra, labels = raw(clean)
    if extra.shape[1:] != x.shape[1:]:
        raise ValueError(f"expected clean rows of shape {tuple(x.shape[1:])}, got {tuple(extra.shape[1:])}")
    if int(labels.max()) >= many:
        raise ValueError(f"expected clean rows of the {many} classes of the data, got one of class {int(labels.max())}")
    lacking = sorted(set(range(many)) - set(labels.tolist()))
    if lacking:
        raise ValueError(f"expected clean rows of every class, got none of class {lacking[0]}: add some, or give none")
    return held_as(x, floats(extra)), labels


def _middling(data: Rows, net: Callable[[], nn.Module], seeds: int, epochs: float, batch: int, seed: int) -> Tensor:
    """Of every class `seeds` rows that early training finds neither easy nor hard: `(N,)` booleans."""
    x, y = data
    few = int(torch.bincount(y)[y.unique()].min())
    if not 1 <= seeds <= few:
        raise ValueError(f"expected 1 to {few} seeds, as many as the smallest class has rows, got {seeds}")
    model = started(net, seed)
    trap = Watched(y, gradient_ascent(0.5))
    fit(model, numbered(x), loss=trap, epochs=epochs, batch=batch, rate=constant(0.1), seed=seed)
    loss = losses(model, data)
    chosen = torch.zeros(len(y), dtype=torch.bool)
    generator = torch.Generator().manual_seed(seed)
    for label in y.unique():
        rows = (y == label).nonzero().squeeze(1)
        rows = rows[loss[rows].argsort()]
        wide = max(seeds, len(rows) // 4)
        start = min(len(rows) // 2, len(rows) - wide)
        chosen[rows[start + torch.randperm(wide, generator=generator)[:seeds]]] = True
    return chosen


def _soon(model: nn.Module, data: Rows, batch: int, rate: float, seed: int) -> Tensor:
    """The symmetric cross-entropy of every row after a copy of the model learnt all labels for an epoch: `(N,)`."""
    ahead = copy.deepcopy(model)
    own = (list(module.parameters(recurse=False)) for module in ahead.modules())
    layers = [layer for layer in own if layer]
    for layer in layers[: len(layers) // 2]:
        for parameter in layer:
            parameter.requires_grad_(False)
    fit(ahead, data, epochs=1, batch=batch, rate=constant(rate), decay=0.0, optimizer="adam", seed=seed)
    return symmetric(logits(ahead, data), data[1])
