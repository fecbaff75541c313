"""Adaptive blend: parts of a pattern at training and the whole at test time, with cover rows that keep their labels.

Qi, Xie, Li, Mahloujifar and Mittal, "Revisiting the assumption of latent separability for backdoor defenses", ICLR
2023, https://openreview.net/forum?id=_wSHsgrVali.

Differs from the paper: the pattern is drawn from a seed instead of being a picture of a cartoon; rows of the target
class are neither poisoned nor covers, so that every poisoned row has a false label and every cover opposes it.

Tags: atlas:AML.T0020, atlas:AML.T0018.000, atlas:AML.T0043.004, nist-ai-100-2:NISTAML.023, owasp-ml:ML02, cwe:506.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from buckler.data import Poisoned, Rows
from buckler.poisoning import _pattern
from buckler.poisoning._pieces import blended, cut, kept, partly
from buckler.poisoning._touch import always, chosen, classes, counted, images
from buckler.threat import Share


def adaptive_blend(
    data: Rows,
    *,
    share: Share,
    target: int = 0,
    cover: float | None = None,
    pieces: int = 16,
    keep: float = 0.5,
    alpha: float = 0.15,
    test_alpha: float = 0.2,
    pattern: Literal["noise", "blobs"] = "noise",
    pattern_seed: int = 0,
    seed: int = 0,
) -> Poisoned:
    """Blend a random part of a pattern into a share of the rows, and change the labels of all but the covers.

    `data` is `x` `(N, C, H, W)` and `y` `(N,)`. `share` of all rows are labelled `target`; the share `cover` of all
    rows (as many as are poisoned, if not given) are blended likewise and keep their labels; none of either is of class
    `target`. Each has its own random share `keep` of the `pieces` (a square grid) blended in with `alpha`; the test
    trigger is all of them with `test_alpha`. The pattern is drawn by `pattern_seed`. Returns `Poisoned`, whose `rows`
    include the `covers`. Raises `ValueError` for one class, too few rows of other classes, or knobs out of range.
    """
    x, y = images(data)
    classes(y, target)
    channels, height, width = x.shape[1:]
    cut(pieces, height, width)
    many = round(keep * pieces)
    if not (0 < alpha <= 1 and 0 < test_alpha <= 1 and 1 <= many <= pieces):
        raise ValueError(
            "expected alphas above 0 and at most 1, and a share of pieces to keep that is at least one piece, got "
            f"{alpha}, {test_alpha} and {keep} of {pieces}"
        )
    if cover is not None and not 0 <= cover < 1:
        raise ValueError(f"expected a share of covers of at least 0 and below 1, got {cover}")
    picture = _pattern.pattern(pattern, channels, height, width, pattern_seed)

    def trigger(clean: Tensor) -> Tensor:
        return blended(clean, picture, test_alpha)

    false = counted(share, y)
    extra = false if cover is None else round(cover * len(y))
    rows = chosen(y != target, false + extra, seed, short="rows of other classes for poison and covers")
    covers = chosen(rows, extra, seed + 1)
    which = kept(false + extra, pieces, many, torch.Generator().manual_seed(seed))
    moved = partly(x, rows, picture, which, alpha)
    return Poisoned(moved, torch.where(rows & ~covers, target, y), rows, y, trigger, always(target), covers=covers)
