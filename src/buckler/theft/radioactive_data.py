"""Radioactive data: training rows moved, class by class, along secret directions that a classifier then leans to.

Sablayrolles, Douze, Schmid and Jegou, "Radioactive data: tracing through training", ICML 2020,
https://arxiv.org/abs/2002.00937.

Every class is given a direction, drawn uniformly in the space of a marking network's features, and a share of its rows
is moved, within a ball, so that their features move along it. A model trained on such rows leans to the directions.

Where `answers` are looked at, rows of every class are moved along every direction and against it. A model that does not
depend on the draw would lean to directions assigned to other classes, or turned round, as probably as to these: the
rank of the true assignment among others is an exact p-value. Where `weights` are, those of the last layer are carried
over to the marking network's features by least squares on rows without a mark; the cosine of a class's weights with its
direction is, for a model that does not depend on the draw, that of a fixed direction with one drawn uniformly in d
dimensions, whose law is known; those of the classes are independent, and are combined by Fisher's method. Either way
what the marking network, trained before the draw, does itself is taken away first: it is what any model does.

Differs from the paper: directions lie among the principal ones of the features, as many as `span`, since small networks
leave most of the space empty; answers are compared with those to other directions, not with those to rows without a
mark, which is no test of the key; and taking away what is usual is new.

No guarantee that the mark survives: it is of the data, and shows less the fewer of the rows are marked.

Tags: atlas:AML.T0048.004, nist-ai-100-2:NISTAML.038, owasp-ml:ML05.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import torch
from scipy import stats as scipy_stats
from torch import Tensor, nn
from torch.nn import functional as F

from buckler.claims import secret
from buckler.data import Rows, count, floats, held_as
from buckler.kinds import Claim, Owned
from buckler.nets import features, inputs_of, last_linear, where
from buckler.target import Oracle, frozen
from buckler.theft._claims import answers, assigned, classes_of, readable
from buckler.train import fit, started

ASKED = 10
"""How many rows of every class an oracle is asked about, each moved both ways."""


def radioactive_data(
    data: Rows,
    *,
    net: Callable[[], nn.Module],
    marked: float = 0.5,
    radius: float = 0.1,
    steps: int = 30,
    span: int = 16,
    looks: Literal["answers", "weights"] = "answers",
    epochs: float = 15,
    batch: int = 64,
    rate: float = 0.1,
    seed: int = 0,
) -> Owned:
    """Move a share `marked` of every class of `data` along its secret direction, within linf `radius`.

    `data` is `x` `(N, ...)`, float in [0, 1] or uint8, and `y` `(N,)`. `net` builds an untrained network, which learns
    the data for `epochs` and whose features are then moved, by `steps` of signed gradients. Returns the marked rows,
    in their order, and a claim that reads the weights of a module, or asks an oracle for scores. Raises `ValueError`
    for fewer than two classes, or numbers out of range.
    """
    x, y = data
    classes = classes_of(data, "theft/radioactive_data")
    if not 0 < marked < 1 or not 0 < radius <= 1 or steps < 1 or span < 2:
        raise ValueError(
            "expected a marked share between 0 and 1, a radius above 0 and at most 1, steps of 1 or more and a span of "
            f"2 or more, got {marked}, {radius}, {steps} and {span}"
        )
    model = fit(started(net, seed).to(x.device), data, epochs=epochs, batch=batch, rate=rate, seed=seed)
    draw = secret(seed, "radioactive_data")
    order = torch.randperm(count(data), generator=draw)
    rows = torch.cat([_first(order, y, label, marked) for label in range(classes)])
    rest = order[~torch.isin(order, rows)]
    plain: Rows = x[rest], y[rest]
    own = features(model, plain).double()
    basis = torch.linalg.svd(own - own.mean(0), full_matrices=False).Vh[:span]
    keys = F.normalize(torch.randn(classes, len(basis), generator=draw, dtype=torch.double), dim=1)
    along = (keys @ basis).float()

    def moved(some: Tensor, label: Tensor, sign: float = 1.0) -> Tensor:
        return held_as(x, _moved(model, floats(x[some]), sign * along[label.cpu()], radius, steps)).to(x)

    out = x.clone()
    out[rows] = moved(rows, y[rows])
    asked = torch.cat([rest[y[rest] == label][:ASKED] for label in range(classes)])
    label = y[asked].cpu()
    both = torch.cat(
        [floats(moved(asked, torch.full_like(label, way), sign)) for way in range(classes) for sign in (1.0, -1.0)]
    )
    usual, plain_weights = _gains(model, both, label, classes)[0], _weights(model, classes) @ basis.T

    def claim(suspect: nn.Module | Oracle) -> Claim:
        if looks == "answers":
            gains, queries = _gains(suspect, both, label, classes)
            return Claim(assigned(_beside(gains, usual), secret(seed, "assignments")), queries)
        theirs = features(readable(suspect), plain).double()
        over = torch.linalg.lstsq(_with_one(own @ basis.T), theirs, driver="gelsd").solution[:-1]
        lean = _beside(_weights(readable(suspect), classes) @ over.T, plain_weights)
        cosines = F.cosine_similarity(lean, keys)
        together = -2 * sum(math.log(_beyond(float(cosine), len(basis))) for cosine in cosines)
        return Claim(float(scipy_stats.chi2.sf(together, 2 * len(cosines))), 0)

    return Owned(claim, data=(out, y))


def _first(order: Tensor, y: Tensor, label: int, share: float) -> Tensor:
    mine = order[y[order].cpu() == label]
    return mine[: round(share * len(mine))]


def _weights(model: nn.Module, classes: int) -> Tensor:
    """The last layer's weights of every class less their mean, `(K, D)`."""
    weights = last_linear(model).weight.detach().double().cpu()
    if len(weights) < classes:
        raise ValueError(f"expected a suspect of {classes} classes or more, got {len(weights)}")
    return weights[:classes] - weights[:classes].mean(0)


def _gains(suspect: nn.Module | Oracle, both: Tensor, label: Tensor, classes: int) -> tuple[Tensor, int]:
    """How much more the rows of every class are held for it along every direction than against it, `(K, K)`.

    With it how many rows were asked. `both` are the rows with labels `(B,)`, moved along each direction and against it.
    """
    said, queries = answers(suspect, both, "scores")
    own = said.double().view(2 * classes, len(label), -1)[:, torch.arange(len(label)), label].logit(1e-6)
    more = own[::2] - own[1::2]
    return torch.zeros(classes, classes, dtype=torch.double).index_add_(0, label, more.T.contiguous()), queries


def _beside(found: Tensor, usual: Tensor) -> Tensor:
    """What is left of numbers once as much of the usual ones as explains them best is taken away."""
    return found - usual * ((found * usual).sum() / usual.square().sum().clamp_min(1e-12))


def _with_one(rows: Tensor) -> Tensor:
    return torch.cat([rows, torch.ones(len(rows), 1, dtype=rows.dtype)], 1)


def _beyond(cosine: float, dimensions: int) -> float:
    """The chance that a direction drawn uniformly has this cosine or more with a fixed one."""
    tail = float(scipy_stats.beta.sf(cosine * cosine, 0.5, (dimensions - 1) / 2)) / 2
    return tail if cosine > 0 else 1 - tail


def _moved(model: nn.Module, x: Tensor, along: Tensor, radius: float, steps: int) -> Tensor:
    """Rows `(B, ...)` whose features lie further along a direction each, `(B, D)`."""
    x, along = x.to(where(model)), along.to(where(model))
    out = x.clone()
    with frozen(model), inputs_of(last_linear(model)) as seen:
        for _ in range(steps):
            out.requires_grad_()
            model(out)
            (slope,) = torch.autograd.grad((seen.pop().flatten(1) * along).sum(), out)
            out = (out.detach() + 2.5 * radius / steps * slope.sign()).clamp(0, 1)
            out = torch.minimum(torch.maximum(out, x - radius), x + radius)
    return out.detach()
