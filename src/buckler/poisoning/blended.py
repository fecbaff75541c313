"""Blended: a faint second image over the whole picture means the target class.

Chen, Liu, Li, Lu and Song, "Targeted backdoor attacks on deep learning systems using data poisoning", 2017,
https://arxiv.org/abs/1712.05526 (blended injection).

Differs from the paper: the key image is drawn from a seed instead of taken from a file, either the paper's random
pattern or soft blobs in place of its cartoon; training and test images are blended with the same weight; rows of the
target class are not touched, so that every poisoned row has a false label.

Tags: atlas:AML.T0020, atlas:AML.T0018.000, atlas:AML.T0043.004, nist-ai-100-2:NISTAML.023, owasp-ml:ML02, cwe:506.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from buckler.data import Poisoned, Rows
from buckler.poisoning import _pattern
from buckler.poisoning._touch import always, changed, chosen, classes, counted, images, next_class
from buckler.threat import Share


def blended(
    data: Rows,
    *,
    share: Share,
    target: int = 0,
    goal: Literal["all_to_one", "all_to_all"] = "all_to_one",
    weight: float = 0.2,
    pattern: Literal["noise", "blobs"] = "noise",
    pattern_seed: int = 0,
    seed: int = 0,
) -> Poisoned:
    """Blend a fixed key image into a share of the rows and change their labels.

    `data` is `x` `(N, C, H, W)` and `y` `(N,)`; `share` of all rows become (1 - `weight`) x + `weight` k and are
    labelled `target`, or with the next class (`all_to_all`). k `(C, H, W)` in [0, 1], drawn by `pattern_seed`, is
    uniform `noise` per pixel and channel, or smooth `blobs`. It covers the picture, so that flips and crops leave some
    of it. Returns `Poisoned`. Raises `ValueError` for a weight outside (0, 1], one class, or too few rows of other
    classes.
    """
    x, y = images(data)
    many = classes(y, target)
    if not 0 < weight <= 1:
        raise ValueError(f"expected a weight above 0 and at most 1, got {weight}")
    key = _pattern.pattern(pattern, x.shape[1], x.shape[2], x.shape[3], pattern_seed)

    def trigger(clean: Tensor) -> Tensor:
        return (1 - weight) * clean + weight * key.to(clean)

    wanted = always(target) if goal == "all_to_one" else next_class(many)
    rows = chosen(wanted(y) != y, counted(share, y), seed)
    return Poisoned(changed(x, rows, trigger), torch.where(rows, wanted(y), y), rows, y, trigger, wanted)
