"""SCAn: the features of a class that holds poison are two groups, and those of the other classes are one.

Tang, Wang, Tang and Zhang, "Demon in the variant: statistical analysis of DNNs for robust backdoor contamination
detection", USENIX Security 2021, https://arxiv.org/abs/1908.00686.

Features are a class's identity plus a variation that all classes share: r = mu_c + e, mu_c ~ N(0, S_mu),
e ~ N(0, S_e). Every class is tested for two identities instead of one, and is flagged if its statistic is an outlier
among the classes.

Differs from the paper: without `clean` rows the two covariances are estimated on `data` itself. Poison makes them wider
where it lies and so is harder to see; they are therefore estimated a second time, around the two groups that were found
in every class. The smaller group is then taken to be the poisoned one, and with `clean` the one farther from the clean
rows of the class. Every direction's variance is given a floor. The statistic is divided by the number of rows, as in
the authors' code, so that large classes are not outliers for their size, and only outliers above the median are
flagged. The best split is sought from many starts instead of one that is drawn. No guarantee: where most classes hold
poison none is an outlier, and without clean rows classes that are many-shaped by nature hide one that is poisoned.

Tags: atlas:AML.T0020, nist-ai-100-2:NISTAML.023, owasp-ml:ML02, cwe:506.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from buckler.data import Rows, raw
from buckler.kinds import Suspicion
from buckler.poisoning._groups import Halves, by_class, halves
from buckler.poisoning._invert import outlying
from buckler.poisoning._look import features
from buckler.poisoning._touch import classes

STEPS = 100
LEAST = 1e-6
"""Of the largest variance: what is below is rounding."""
FLOOR = 0.01
"""Of the mean variance: added to every direction, so that one in which hardly anything varies does not decide."""
PER_DIRECTION = 10
"""Rows per direction of the feature space; with fewer rows only the widest directions are looked at."""


def scan(model: nn.Module, data: Rows, *, clean: Rows | None = None, threshold: float = math.exp(2)) -> Suspicion:
    """Score the rows of `data`, on which `model` was trained, by how much better they fit the suspicious one of two
    groups of their class.

    `data` and `clean` are `x` `(N, ...)` and `y` `(N,)`; the features are the inputs of the model's last linear layer.
    The score is the log of the likelihood ratio of the two groups, times the softplus of the class's anomaly: by how
    many times 1.4826 median absolute deviations its statistic is above the median of all classes. Flagged is the
    suspicious group of every class whose anomaly is above `threshold`. Raises `ValueError` for fewer than three
    classes, clean rows that lack a class, or a model without a linear layer.
    """
    x, y = raw(data)
    classes(y)
    labels = y.unique()
    if len(labels) < 3:
        raise ValueError(f"expected rows of at least three classes to compare, got {len(labels)}")
    seen = features(model, (x, y)).double()
    known, known_y = (seen, y) if clean is None else (features(model, clean).double(), raw(clean)[1])
    missing = labels[~torch.isin(labels, known_y)]
    if len(missing):
        raise ValueError(f"expected clean rows of every class, got none of class {int(missing[0])}")
    middle, axes = _wide(known)
    seen, known = (seen - middle) @ axes, (known - middle) @ axes
    basis, strength = _variation(known, known_y)
    found = [_split(seen[rows] @ basis) for _, rows in by_class(y)]
    if clean is None:
        parts = 2 * y
        for (_, rows), two in zip(by_class(y), found, strict=True):
            parts[rows] += two.small.long()
        basis, strength = _variation(known, parts)
        found = [_split(seen[rows] @ basis) for _, rows in by_class(y)]
    score = torch.zeros(len(y))
    flagged = torch.zeros(len(y), dtype=torch.bool)
    gains: list[Tensor] = []
    for (label, rows), (small, centre, other) in zip(by_class(y), found, strict=True):
        own = seen[rows] @ basis
        if clean is not None:
            usual = known[known_y == label].mean(0) @ basis
            if float((usual - centre).norm()) < float((usual - other).norm()):
                small, centre, other = ~small, other, centre
        to_centre, to_other = (own - centre).square().sum(1), (own - other).square().sum(1)
        score[rows] = ((to_other - to_centre) / 2).float()
        flagged[rows] = small
        single = own.mean(0) * len(rows) * strength / (len(rows) * strength + 1)
        gains.append(((own - single).square().sum(1) - torch.where(small, to_centre, to_other)).mean())
    index = outlying(-torch.stack(gains))
    place = torch.searchsorted(labels, y)
    return Suspicion(score * softplus(index)[place], flagged & (index > threshold)[place])


def _split(own: Tensor) -> Halves:
    """The two groups of a class's rows `(n, d)`, sought from cuts along the directions in which it is widest."""
    apart = own - own.mean(0)
    turn = torch.linalg.eigh(apart.T @ apart)[1].flip(1)
    small, centre, other = halves(own @ turn)
    return Halves(small, centre @ turn.T, other @ turn.T)


def _wide(rows: Tensor) -> tuple[Tensor, Tensor]:
    """The mean of `rows` `(N, D)` and the directions `(D, d)` in which they vary enough to be told from rounding."""
    centred = rows - rows.mean(0)
    values, directions = torch.linalg.eigh(centred.T @ centred)
    wide = min(int((values > LEAST * float(values.max())).sum()), max(2, len(rows) // PER_DIRECTION))
    return rows.mean(0), directions.flip(1)[:, :wide]


def _variation(rows: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """A map `(d, d)` after which the variation has the identity for covariance and that of the identities is diagonal,
    and its diagonal `(d,)`: both covariances by expectation maximisation on centred `rows` `(N, d)` with labels `y`.
    """
    _, place, counts = y.unique(return_inverse=True, return_counts=True)
    counts = counts[:, None].double()
    weights = counts / len(rows)
    means = torch.zeros(len(counts), rows.shape[1], dtype=rows.dtype).index_add_(0, place, rows) / counts
    apart = rows - means[place]
    scatter = apart.T @ apart / len(rows)
    basis, strength = _diagonal(scatter, (means * weights).T @ means)
    within = scatter
    for _ in range(STEPS):
        shrink = counts * strength / (counts * strength + 1)
        identities = torch.linalg.solve(basis, means @ basis * shrink, left=False)
        off = means - identities
        before, within = within, scatter + (off * weights).T @ off
        basis, strength = _diagonal(within, (identities * weights).T @ identities)
        if float((within - before).norm()) <= 1e-6 * float(before.norm()):
            break
    return basis, strength


def _diagonal(within: Tensor, between: Tensor) -> tuple[Tensor, Tensor]:
    """The map that makes `within`, plus the floor, the identity and `between` diagonal, and that diagonal."""
    values, turn = torch.linalg.eigh(within)
    white = turn / (values.clamp_min(0) + FLOOR * values.mean()).sqrt()
    strength, axes = torch.linalg.eigh(white.T @ between @ white)
    return white @ axes, strength.clamp_min(0)
