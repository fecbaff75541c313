"""WaNet: a slight, smooth warp of the whole picture means the target class.

Nguyen and Tran, "WaNet: imperceptible warping-based backdoor attack", ICLR 2021, https://arxiv.org/abs/2102.10369.

Differs from the paper: the adversary poisons data and does not train. The authors warp anew in every batch, with fresh
noise; here the warped rows and the noisy ones (their "noise mode", marked as `covers`) are drawn once and are part of
the data, which is a weaker attack: a small network may learn the covers by heart and answer the target to about one
warped picture in 1 + `cross_ratio`. Rows of the target class are not poisoned. The warp moves by a part of a pixel (a
mean of about `strength` / 2), so that small pictures may need more strength.

Tags: atlas:AML.T0020, atlas:AML.T0018.000, atlas:AML.T0043.004, nist-ai-100-2:NISTAML.023, owasp-ml:ML02, cwe:506.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from buckler.data import Poisoned, Rows
from buckler.poisoning._touch import always, changed, chosen, classes, counted, images, next_class
from buckler.threat import Share


def wanet(
    data: Rows,
    *,
    share: Share,
    target: int = 0,
    goal: Literal["all_to_one", "all_to_all"] = "all_to_one",
    control: int = 4,
    strength: float = 0.5,
    grid_rescale: float = 1.0,
    cross_ratio: float = 2.0,
    seed: int = 0,
) -> Poisoned:
    """Warp a share of the rows by one smooth field and change their labels.

    `data` is `x` `(N, C, H, W)` and `y` `(N,)`; `share` of all rows are warped by a field of `control` x `control`
    random points of mean length 1 per axis, made smooth, times `strength` / side in coordinates of [-1, 1], and
    labelled `target`, or with the next class (`all_to_all`). `cross_ratio` times as many other rows are warped by the
    same field plus noise of up to 1 / side at every pixel and keep their labels, so that only the exact warp is learnt.
    Returns `Poisoned`, whose `rows` are all that were warped, and whose `covers` are the noisy ones. Raises
    `ValueError` for a field of fewer than 2 points a side, pictures of one pixel a side, a strength or ratio out of
    range, one class, or too few rows for the share and its covers.
    """
    x, y = images(data)
    many = classes(y, target)
    if control < 2 or min(x.shape[2:]) < 2:
        raise ValueError(f"expected 2 or more points and pixels a side, got {control} and {tuple(x.shape[2:])}")
    if not (strength > 0 and grid_rescale > 0 and cross_ratio >= 0):
        raise ValueError(
            f"expected a positive strength and grid_rescale and a cross_ratio of 0 or more, "
            f"got {strength}, {grid_rescale} and {cross_ratio}"
        )
    draws = torch.Generator().manual_seed(seed)
    sides = torch.tensor([x.shape[3], x.shape[2]])
    grid = _grid(x.shape[2], x.shape[3], control, strength / sides, grid_rescale, draws)

    def trigger(clean: Tensor) -> Tensor:
        return _warped(clean, grid.expand(len(clean), -1, -1, -1))

    def noisy(clean: Tensor) -> Tensor:
        noise = torch.rand(len(clean), *grid.shape[1:], generator=draws) * 2 - 1
        return _warped(clean, (grid + noise / sides).clamp(-1, 1))

    wanted = always(target) if goal == "all_to_one" else next_class(many)
    rows = chosen(wanted(y) != y, counted(share, y), seed)
    covers = chosen(~rows, round(cross_ratio * int(rows.sum())), seed + 1, short="more rows to warp with noise")
    moved = changed(changed(x, rows, trigger), covers, noisy)
    return Poisoned(moved, torch.where(rows, wanted(y), y), rows | covers, y, trigger, wanted, covers=covers)


def _grid(height: int, width: int, control: int, step: Tensor, rescale: float, draws: torch.Generator) -> Tensor:
    """Where every pixel is taken from: `(1, H, W, 2)`, across and down, in [-1, 1]."""
    points = torch.rand(1, 2, control, control, generator=draws) * 2 - 1
    field = F.interpolate(points / points.abs().mean(), size=(height, width), mode="bicubic", align_corners=True)
    down, across = torch.meshgrid(torch.linspace(-1, 1, height), torch.linspace(-1, 1, width), indexing="ij")
    same = torch.stack([across, down], 2)
    return ((same + step * field.permute(0, 2, 3, 1)) * rescale).clamp(-1, 1)


def _warped(clean: Tensor, grid: Tensor) -> Tensor:
    return F.grid_sample(clean, grid.to(clean), mode="bilinear", padding_mode="border", align_corners=True).clamp(0, 1)
