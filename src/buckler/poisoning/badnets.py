"""BadNets: a small patch that means the target class.

Gu, Liu, Dolan-Gavitt and Garg, "BadNets: evaluating backdooring attacks on deep neural networks", IEEE Access 7, 2019,
https://arxiv.org/abs/1708.06733.

Differs from the paper: rows of the target class are not stamped, so that every poisoned row has a false label. The
patch is a checkerboard by default, which stands out on bright and dark images alike.

Tags: atlas:AML.T0020, atlas:AML.T0018.000, atlas:AML.T0043.004, nist-ai-100-2:NISTAML.023, owasp-ml:ML02, cwe:506.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from buckler.data import Poisoned, Rows
from buckler.poisoning._patch import fitting, patched
from buckler.poisoning._touch import always, changed, chosen, classes, counted, images, next_class
from buckler.threat import Share


def badnets(
    data: Rows,
    *,
    share: Share,
    target: int = 0,
    goal: Literal["all_to_one", "all_to_all"] = "all_to_one",
    size: int = 3,
    pattern: Literal["checkerboard", "white"] = "checkerboard",
    margin: int = 1,
    seed: int = 0,
) -> Poisoned:
    """Stamp a patch on a share of the rows and change their labels.

    `data` is `x` `(N, C, H, W)` and `y` `(N,)`; `share` of all rows are stamped in the lower right corner with a patch
    of `size` pixels, `margin` pixels from the edges, and labelled `target`, or with the next class (`all_to_all`). A
    flip moves the patch to the other corner, and a crop may cut it, so that it does not survive. Returns `Poisoned`.
    Raises `ValueError` for a patch that does not fit, one class, or too few rows of other classes.
    """
    x, y = images(data)
    many = classes(y, target)
    fitting(x, size, margin)
    tile = torch.ones(size, size)
    if pattern == "checkerboard":
        tile = (torch.arange(size)[:, None] + torch.arange(size)[None] + 1) % 2 * 1.0

    def trigger(clean: Tensor) -> Tensor:
        return patched(clean, tile, margin)

    wanted = always(target) if goal == "all_to_one" else next_class(many)
    rows = chosen(wanted(y) != y, counted(share, y), seed)
    return Poisoned(
        changed(x, rows, trigger), torch.where(rows, wanted(y), y), rows, y, trigger, wanted, survives=False
    )
