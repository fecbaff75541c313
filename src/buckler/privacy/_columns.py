"""Columns of rows that are hidden: which values they may have, which they have, and what the other columns tell."""

from __future__ import annotations

from typing import cast

import numpy as np
import torch
from sklearn.cluster import KMeans
from sklearn.ensemble import RandomForestClassifier
from torch import Tensor

from buckler.data import Rows

FEW = 1e-3
"""What is added to the imputed probability of every value before they are scaled to 1: none is impossible."""
TREES = 100


def hidden(x: Tensor, columns: tuple[int, ...] | None) -> tuple[int, ...]:
    """The columns of `x` `(N, ...)`, counted along a flattened row: as asked, else the one that varies most.

    A `ValueError` for columns that are not there, twice there, or all there are.
    """
    wide = x[0].numel()
    if columns is None:
        return (int(x.flatten(1).double().var(0).argmax()),)
    there = set(columns) <= set(range(wide))
    if not columns or len(set(columns)) < len(columns) or len(columns) >= wide or not there:
        raise ValueError(f"expected some of the columns 0 to {wide - 1}, each once, got {columns}")
    return columns


def values(x: Tensor, columns: tuple[int, ...], levels: int) -> Tensor:
    """What `columns` may hold, `(V, C)`, V at most `levels`: what is found in `x`, or centres of it if that is more."""
    if levels < 2:
        raise ValueError(f"expected two levels or more, got {levels}")
    held = x.flatten(1)[:, list(columns)]
    found = held.unique(dim=0)
    if len(found) <= levels:
        return found
    centres = KMeans(levels, random_state=0).fit(held.double().cpu().numpy()).cluster_centers_
    return torch.from_numpy(np.sort(centres, 0) if len(columns) == 1 else centres).to(held)


def coded(x: Tensor, columns: tuple[int, ...], known: Tensor) -> Tensor:
    """Which of the values `known` `(V, C)` the columns of each row are nearest to: `(N,)`."""
    return torch.cdist(x.flatten(1)[:, list(columns)].double(), known.double()).argmin(1)


def filled(x: Tensor, columns: tuple[int, ...], value: Tensor) -> Tensor:
    """A copy of `x` with `value` `(C,)` in the columns of every row."""
    made = x.clone().flatten(1)
    made[:, list(columns)] = value.to(made)
    return made.view_as(x)


def imputed(public: Rows, x: Tensor, y: Tensor, columns: tuple[int, ...], known: Tensor, seed: int) -> Tensor:
    """How probable each value is for each row by its other columns and its label, learnt from `public`: `(B, V)`."""
    a, b = public
    others = [column for column in range(a[0].numel()) if column not in columns]
    classes = int(max(b.max(), y.max())) + 1

    def seen(rows: Tensor, labels: Tensor) -> np.ndarray:
        told = torch.nn.functional.one_hot(labels.cpu(), classes)
        return torch.cat([rows.flatten(1)[:, others].cpu(), told], 1).double().numpy()

    forest = RandomForestClassifier(TREES, random_state=seed, n_jobs=1)
    forest.fit(seen(a, b), coded(a, columns, known).cpu().numpy())
    told = torch.from_numpy(cast(np.ndarray, forest.predict_proba(seen(x, y))))
    made = torch.full((len(x), len(known)), FEW, dtype=torch.double)
    made[:, torch.from_numpy(forest.classes_)] += told
    return made / made.sum(1, keepdim=True)
