"""Neural Cleanse: for every class the smallest patch that turns anything into it; one that is too small is suspect.

Wang, Yao, Shan, Li, Viswanath, Zheng and Zhao, "Neural Cleanse: identifying and mitigating backdoor attacks in neural
networks", IEEE S&P 2019, https://doi.org/10.1109/SP.2019.00031; details of the authors' repository,
https://github.com/bolunwang/backdoor.

Differs from the paper: all classes are searched in one batch, from the same start, so that sizes differ by the class
and not by the draw; the weight of the size is controlled after every batch, not every pass over the data; a trigger
counts once its success rate over the last `patience` batches is high enough, and rows of the class itself, which would
count as successes, are left out; a class for which no trigger was found has the size of the image. Steps are fewer, for
the weight settles sooner. Norms of clean classes are skewed, so that among ten classes a mask of a tenth of the median
can miss the paper's threshold of 2; logarithms are compared instead, whose deviation is taken to be no less than lets a
mask of half the median reach 2 (`scale="plain"` is the paper's; both are measured in benchmarks/detection.py, on models
that neither was set on). No guarantee: triggers that are large or depend on the input are not found.

Tags: atlas:AML.T0018.000, nist-ai-100-2:NISTAML.023, owasp-ml:ML10, cwe:506.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from buckler.data import Rows
from buckler.kinds import Anomaly
from buckler.poisoning._invert import HALF, Search, inverted, outlying
from buckler.poisoning._look import where
from buckler.poisoning._touch import images

TINY = 0.1
"""Pixels; the logarithms of smaller masks are not told apart."""


def neural_cleanse(
    model: nn.Module,
    clean: Rows,
    *,
    steps: int = 200,
    batch: int = 32,
    rate: float = 0.1,
    cost: float = 1e-3,
    success: float = 0.99,
    patience: int = 5,
    multiplier: float = 2.0,
    threshold: float = 2.0,
    scale: Literal["log", "plain"] = "log",
    seed: int = 0,
) -> Anomaly:
    """Invert a mask and a pattern for every class of `model` from `clean` rows `x` `(N, C, H, W)`, `y` `(N,)`.

    At most `steps` steps of Adam on `batch` rows per class; `cost` weighs the mask's l1 norm, times `multiplier` while
    the `success` rate holds and divided by its power 1.5 while it does not. Returns the anomaly index of the norms'
    logarithms, or of the norms (`scale`), as `score` `(K,)` (positive where the mask is smaller than the median), the
    classes above `threshold` as flagged, the masks `(K, 1, H, W)` and patterns `(K, C, H, W)` in [0, 1]: the trigger is
    `(1 - mask) * x + mask * pattern`. Raises `ValueError` for rows that are no images or of one class, or a model of
    fewer than three classes.
    """
    x, y = images(clean)
    pattern = torch.rand(x.shape[1:], generator=torch.Generator().manual_seed(seed))
    start = torch.cat([torch.zeros(1, *x.shape[2:]), torch.atanh(1.98 * (pattern - 0.5))]).to(where(model))
    search = Search(steps, batch, rate, 0.0, cost, success, patience, multiplier, multiplier**1.5, seed)
    found = inverted(model, (x, y), start, _stamped, _size, _size, search)
    mask, pattern = _parts(found.theta)
    size = found.size.clamp_max(mask[0].numel())
    score = outlying(size.clamp_min(TINY).log(), least=HALF) if scale == "log" else outlying(size)
    return Anomaly(score, score > threshold, mask, pattern)


def _parts(theta: Tensor) -> tuple[Tensor, Tensor]:
    """Masks `(A, 1, H, W)` and patterns `(A, C, H, W)` in [0, 1]."""
    open_box = theta.tanh() / 2 + 0.5
    return open_box[:, :1], open_box[:, 1:]


def _stamped(theta: Tensor, x: Tensor) -> Tensor:
    mask, pattern = _parts(theta)
    return x + mask[:, None] * (pattern[:, None] - x)


def _size(theta: Tensor) -> Tensor:
    return _parts(theta)[0].flatten(1).sum(1)
