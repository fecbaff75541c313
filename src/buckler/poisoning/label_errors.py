"""Label errors: confident learning on what networks answer to rows that they have not seen.

Northcutt, Jiang and Chuang, "Confident learning: estimating uncertainty in dataset labels", JAIR 70, 2021,
https://arxiv.org/abs/1911.00068; the rows are flagged by its authors' library, https://github.com/cleanlab/cleanlab.

Differs from the paper: none in what is flagged; the folds are drawn by what the rows are, not by where they stand. No
guarantee, and no power against a backdoor, whose labels agree with its trigger in every fold.

Tags: atlas:AML.T0020, atlas:AML.T0059, nist-ai-100-2:NISTAML.013, owasp-ml:ML02, cwe:345.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any, Literal

import torch
from torch import nn

from buckler.augment import Augment
from buckler.data import Rows, raw
from buckler.kinds import Suspicion
from buckler.poisoning._groups import by_class, ordered
from buckler.poisoning._look import logits, outputs
from buckler.poisoning._touch import classes
from buckler.train import fit, started


def label_errors(
    data: Rows,
    *,
    net: Callable[[], nn.Module],
    folds: int = 5,
    prune: Literal["by_noise_rate", "by_class", "both"] = "by_noise_rate",
    epochs: float = 10,
    batch: int = 128,
    rate: float = 0.1,
    augment: Augment | None = None,
    seed: int = 0,
) -> Suspicion:
    """Score the rows of `data`, `x` `(N, ...)` and `y` `(N,)`, by how little of their label a network sees in them that
    was trained without them.

    Every one of `folds` parts, each with its share of every class, is answered by a network trained on the others. The
    score is 1 minus the probability of the row's label; flagged are the rows that confident learning takes out. Raises
    `ValueError` for one class only, a class with fewer rows than folds, or if cleanlab is not installed.
    """
    find = _finder()
    x, y = raw(data)
    classes(y)
    if folds < 2:
        raise ValueError(f"expected at least 2 folds, got {folds}: a row must be left out of what it is judged by")
    order = ordered(x, y, seed)
    x, y = x[order], y[order]
    fold = torch.zeros_like(y)
    for label, rows in by_class(y):
        if len(rows) < folds:
            raise ValueError(f"expected at least {folds} rows of every class, got {len(rows)} of class {label}")
        fold[rows] = torch.arange(len(rows)) % folds
    labels, given = y.unique(return_inverse=True)
    said = torch.zeros(len(y), len(labels))
    for part in range(folds):
        own = fold == part
        model = started(net, seed + part)
        outputs(model, (x, y))
        fit(model, (x[~own], y[~own]), epochs=epochs, batch=batch, rate=rate, augment=augment, seed=seed + part)
        said[own] = logits(model, (x[own], y[own]))[:, labels].float().softmax(1)
    doubted = torch.from_numpy(find(given.numpy(), said.double().numpy(), filter_by=f"prune_{prune}", n_jobs=1))
    score, flagged = torch.zeros(len(y)), torch.zeros(len(y), dtype=torch.bool)
    score[order] = 1 - said.gather(1, given[:, None]).squeeze(1)
    flagged[order] = doubted
    return Suspicion(score, flagged)


def _finder() -> Callable[..., Any]:
    try:
        return import_module("cleanlab.filter").find_label_issues  # only here: an optional extra
    except ImportError:
        raise ValueError(
            "expected cleanlab to be installed, got none: install it with pip install cleanlab==2.9.0"
        ) from None
