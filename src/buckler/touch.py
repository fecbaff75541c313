"""What attacks on training data share: which rows are touched, for whom, and how pixels stay as the data holds them."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor

from buckler.data import Rows, as_tensors, floats, held_as, raw
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
    if int(y.min()) == many - 1:
        raise ValueError(f"expected rows of at least two classes, got {len(y)} rows of class {int(y[0])} only")
    if target is not None and not 0 <= target < many:
        raise ValueError(f"expected a target class of 0 to {many - 1}, got {target}")
    return many


def counted(share: Share, y: Tensor) -> int:
    """How many of the rows `y` `(N,)` are the `share`; a `TypeError` for what is no `Share`."""
    if not isinstance(cast(object, share), Share):
        raise TypeError(f"expected a share such as Share(0.05), got {share!r}")
    return share.of(len(y))


def chosen(able: Tensor, many: int, seed: int, *, short: str = "rows that may be poisoned") -> Tensor:
    """`many` of the rows where `able` `(N,)` is true, drawn by `seed` alone: `(N,)` booleans."""
    rows = able.nonzero().squeeze(1)
    if len(rows) < many:
        raise ValueError(f"expected at least {many} {short}, got {len(rows)}: ask for a smaller share")
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))
    picked = torch.zeros_like(able)
    picked[rows[order[:many]]] = True
    return picked


def changed(x: Tensor, rows: Tensor, change: Callable[[Tensor], Tensor]) -> Tensor:
    """A copy of `x` with `change`, a function of floats in [0, 1], applied to `rows` `(N,)`; uint8 stays uint8."""
    out = x.clone()
    for part in rows.nonzero().squeeze(1).split(CHUNK):
        out[part] = held_as(x, change(floats(x[part])).clamp(0, 1))
    return out


def always(target: int) -> Callable[[Tensor], Tensor]:
    """What is wanted of an all-to-one attack: the target, whatever the true label."""
    return lambda y: torch.full_like(y, target)


def next_class(classes: int) -> Callable[[Tensor], Tensor]:
    """What is wanted of an all-to-all attack: the true label plus one."""
    return lambda y: (y + 1) % classes


def wishes(prey: Rows | None, x: Tensor, classes: int) -> Rows:
    """The inputs to be misclassified, as floats in [0, 1], with the labels wanted for them; a `ValueError` if none."""
    if prey is None:
        raise ValueError(
            "expected prey, inputs (P, C, H, W) and the labels (P,) wanted for them, got None: this attack makes the "
            "model wrong on chosen inputs only"
        )
    hunted, labels = as_tensors(prey)
    if hunted.shape[1:] != x.shape[1:] or int(labels.max()) >= classes:
        raise ValueError(
            f"expected prey of shape {tuple(x.shape[1:])} with wanted labels of 0 to {classes - 1}, got "
            f"{tuple(hunted.shape[1:])} and labels up to {int(labels.max())}"
        )
    return hunted, labels


def shared_out(total: int, among: int) -> list[int]:
    """`total` as whole parts that differ by one at most, larger ones first; a `ValueError` if a part were empty."""
    if total < among:
        raise ValueError(f"expected a share of at least {among} rows, one per prey, got {total}: ask for a larger one")
    return [total // among + (index < total % among) for index in range(among)]
