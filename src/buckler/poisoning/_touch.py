"""What the poisoning attacks share: which rows are touched, and how pixels are kept as the data holds them."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from buckler.data import Rows, raw
from buckler.threat import Share

CHUNK = 4096
"""Rows that are changed at once."""


def images(data: Rows) -> Rows:
    """`x` `(N, C, H, W)` as it is held and `y` `(N,)`, checked; a `ValueError` for rows that are no images."""
    x, y = raw(data)
    if x.ndim != 4:
        raise ValueError(f"expected images (N, C, H, W), got {tuple(x.shape)}: this attack changes pixels")
    return x, y


def classes(y: Tensor, target: int | None = None) -> int:
    """How many classes there are; fewer than two, or a `target` that is none of them, is a `ValueError`."""
    many = int(y.max()) + 1
    if int((torch.bincount(y) > 0).sum()) < 2:
        raise ValueError(f"expected rows of at least two classes, got {len(y)} rows of class {int(y[0])} only")
    if target is not None and not 0 <= target < many:
        raise ValueError(f"expected a target class of 0 to {many - 1}, got {target}")
    return many


def chosen(able: Tensor, many: int, seed: int, *, short: str = "rows that may be poisoned") -> Tensor:
    """`many` of the rows where `able` `(N,)` is true, drawn by `seed` alone: `(N,)` booleans."""
    rows = able.nonzero().squeeze(1)
    if len(rows) < many:
        raise ValueError(f"expected at least {many} {short}, got {len(rows)}: ask for a smaller share")
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))
    picked = torch.zeros_like(able)
    picked[rows[order[:many]]] = True
    return picked


def clean_label(y: Tensor, target: int, share: Share, seed: int) -> Tensor:
    """Rows of the target class, as many as `share` of the whole data set or all of them: `(N,)` booleans."""
    able = y == target
    return chosen(able, min(share.of(len(y)), max(1, int(able.sum()))), seed, short="rows of the target class")


def changed(x: Tensor, rows: Tensor, change: Callable[[Tensor], Tensor]) -> Tensor:
    """A copy of `x` with `change`, a function of floats in [0, 1], applied to `rows` `(N,)`; uint8 stays uint8."""
    out = x.clone()
    for part in rows.nonzero().squeeze(1).split(CHUNK):
        held = x[part]
        moved = change(held.float() / 255 if x.dtype == torch.uint8 else held).clamp(0, 1)
        out[part] = (moved * 255).round().to(torch.uint8) if x.dtype == torch.uint8 else moved.to(x.dtype)
    return out


def always(target: int) -> Callable[[Tensor], Tensor]:
    """What is wanted of an all-to-one attack: the target, whatever the true label."""
    return lambda y: torch.full_like(y, target)


def next_class(classes: int) -> Callable[[Tensor], Tensor]:
    """What is wanted of an all-to-all attack: the true label plus one."""
    return lambda y: (y + 1) % classes
