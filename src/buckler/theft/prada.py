"""PRADA: a client whose questions do not lie at the distances of natural ones is stealing the model.

Juuti, Szyller, Marchal and Asokan, "PRADA: protecting against DNN model stealing attacks", IEEE EuroS&P 2019,
https://arxiv.org/abs/1805.02628.

Differs from the paper: the test is made at every tenth question, as the authors' own code does, not at every one.
Distances that are all the same are taken as normal, because the statistic is not defined for them.

No guarantee. A client is only tested after a hundred distances: one who asks from several accounts is not seen. Whoever
asks about natural inputs (Knockoff Nets, Copycat) passes by design, and so do steps as long as natural distances are,
or steps among enough natural questions.

Tags: atlas:AML.M0004, atlas:AML.M0024, atlas:AML.T0024.002, nist-ai-100-2:NISTAML.031, owasp-ml:ML05.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator

import numpy as np
import torch
from scipy import stats as scipy_stats
from torch import Tensor

from buckler.data import Rows, floats
from buckler.kinds import Watched

TOGETHER = 512
"""How many rows' distances are computed at once."""


def prada(queries: Rows, *, threshold: float = 0.95, least: int = 100, every: int = 10, spread: float = 3.0) -> Watched:
    """Shapiro and Wilk's W of the distances from questions to those asked before that got the same label.

    `queries` are what one client asked, in order: `x` `(N, ...)`, float in [0, 1] or uint8, and the labels `y` `(N,)`
    that were answered. The distance is the least l2 one to the growing set of the label: questions farther from it than
    the mean less one standard deviation of its own distances. Distances within `spread` standard deviations of the mean
    are tested at every `every`-th question from the one with more than `least` distances on. The client is flagged from
    the first W below `threshold` on; `score` `(N,)` is the latest 1 - W, and 0 before there is one. A `ValueError` for
    numbers out of range, and for questions that are not finite: no distance after them would be.
    """
    if not 0 <= threshold <= 1 or least < 3 or every < 1 or spread <= 0:
        raise ValueError(
            "expected a threshold in [0, 1], least of 3 or more, every of 1 or more and a spread above 0, got "
            f"{threshold}, {least}, {every} and {spread}"
        )
    x, labels = floats(queries[0]).flatten(1).cpu(), queries[1].tolist()
    if bad := (~x.isfinite().all(1)).nonzero().flatten().tolist():
        raise ValueError(f"expected finite numbers, got others in {len(bad)} questions, the first of them {bad[0] + 1}")
    grown: dict[int, tuple[list[int], list[float]]] = {}
    cut, distances, scores, latest = dict[int, float](), list[float](), list[float](), 0.0
    for index, far in enumerate(_far(x)):
        label = labels[index]
        if label not in grown:
            grown[label], cut[label] = ([index], [0.0]), 0.0
        else:
            held, own = grown[label]
            distances.append(float(far[held].min()))
            if distances[-1] > cut[label]:
                held.append(index)
                own.append(distances[-1])
                cut[label] = max(cut[label], float(np.mean(own) - np.std(own)))
        if len(distances) > least and (index + 1) % every == 0:
            latest = 1 - _normality(np.array(distances), spread)
        scores.append(latest)
    score = torch.tensor(scores, dtype=torch.double)
    return Watched((score > 1 - threshold).cummax(0).values if scores else score > 0, score)


def _far(x: Tensor) -> Iterator[np.ndarray]:
    """For every row of `x` `(N, D)` its distances to the rows before it and some of those after."""
    for start in range(0, len(x), TOGETHER):
        part = x[start : start + TOGETHER]
        yield from torch.cdist(part, x[: start + len(part)], compute_mode="donot_use_mm_for_euclid_dist").numpy()


def _normality(distances: np.ndarray, spread: float) -> float:
    """W of those distances that are within `spread` standard deviations of the mean: 1 where they are normal."""
    kept = distances[np.abs(distances - distances.mean()) <= spread * distances.std()]
    if len(kept) < 3 or math.isclose(kept.min(), kept.max(), abs_tol=1e-12):
        return 1.0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a p-value for more than 5,000, which is not looked at
        return float(scipy_stats.shapiro(kept).statistic)
