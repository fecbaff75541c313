"""Pixel inversion: for every class the fewest pixels that, moved up or down, turn anything into it.

Tao, Shen, Liu, An, Xu, Ma, Li and Zhang, "Better trigger inversion optimization in backdoor scanning", CVPR 2022,
https://openaccess.thecvf.com/content/CVPR2022/html/Tao_Better_Trigger_Inversion_Optimization_in_Backdoor_Scanning_CVPR_2022_paper.html;
details of the authors' repository, https://github.com/Gwinhen/PixelBackdoor.

Differs from the paper: all classes are searched in one batch, from the same start, for universal triggers only. The two
parts of a perturbation are kept in [0, 1] after every step, so that a pixel that was dropped can come back; the authors
let parts fall below zero, where no gradient of the loss reaches them, and restart from the best instead. A class is
judged among the classes of the model by the anomaly index of Neural Cleanse, not by a bound on the number of pixels
that was fitted to a set of models. No guarantee: triggers of many pixels are not small in this sense.

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

STEP = 1 / 255
"""A change below this is none in an image of eight bits."""


def pixel_backdoor(
    model: nn.Module,
    clean: Rows,
    *,
    steps: int = 300,
    batch: int = 32,
    rate: float = 0.1,
    cost: float = 1e-3,
    success: float = 0.9,
    patience: int = 10,
    multiplier: float = 1.5,
    threshold: float = 2.0,
    scale: Literal["plain", "log"] = "plain",
    seed: int = 0,
) -> Anomaly:
    """Invert a signed perturbation for every class of `model` from `clean` rows `x` `(N, C, H, W)`, `y` `(N,)`.

    At most `steps` steps of Adam on `batch` rows per class; `cost` weighs a smooth count of the pixels, times
    `multiplier` while the `success` rate holds and divided by its power 1.5 while it does not. Returns the anomaly
    index of the number of pixels, or of its logarithm (`scale`), as `score` `(K,)` (positive below the median), the
    classes above `threshold` as flagged, which pixels are moved as masks `(K, 1, H, W)`, and by how much as patterns
    `(K, C, H, W)` in [-1, 1]: the trigger is `x + pattern`, cut to [0, 1]. Raises `ValueError` for rows that are no
    images or of one class, or a model of fewer than three classes.
    """
    x, y = images(clean)
    many, height, width = x.shape[1:]
    start = torch.rand(2 * many, height, width, generator=torch.Generator().manual_seed(seed)).to(where(model))
    search = Search(steps, batch, rate, cost, cost, success, patience, multiplier, multiplier**1.5, seed)
    found = inverted(model, (x, y), start, _stamped, _smooth, _pixels, search, within=(0.0, 1.0))
    pattern = _pattern(found.theta)
    size = found.size.clamp_max(height * width)
    score = outlying((1 + size).log(), least=HALF) if scale == "log" else outlying(size, least=1.0)
    return Anomaly(score, score > threshold, _moved(found.theta)[:, None].float(), pattern)


def _pattern(theta: Tensor) -> Tensor:
    """The signed perturbation `(A, C, H, W)`: what is added less what is taken away."""
    up, down = theta.where(theta >= STEP, 0.0).chunk(2, 1)
    return up - down


def _stamped(theta: Tensor, x: Tensor) -> Tensor:
    up, down = theta.chunk(2, 1)
    return (x + (up - down)[:, None]).clamp(0, 1)


def _smooth(theta: Tensor) -> Tensor:
    """The authors' smooth count of pixels, each part by its largest channel."""
    up, down = theta.chunk(2, 1)
    return ((up.amax(1) / 10).tanh() / 2 + (down.amax(1) / 10).tanh() / 2).flatten(1).sum(1)


def _moved(theta: Tensor) -> Tensor:
    """Which pixels are moved in any channel: `(A, H, W)`."""
    return (_pattern(theta).abs() >= STEP).any(1)


def _pixels(theta: Tensor) -> Tensor:
    return _moved(theta).flatten(1).sum(1).float()
