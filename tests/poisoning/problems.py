"""Small problems with a known answer: images of two bright halves, and a corner pixel that means class 0."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from buckler.data import Poisoned, Rows
from buckler.kinds import Cultivated, Suspicion
from buckler.poisoning._touch import always
from buckler.subject import Subject
from buckler.threat import Share
from buckler.train import fit, started

SIDE = 8


def stripes(many: int, seed: int = 0) -> Rows:
    """`(N, 1, 8, 8)`: class 0 is bright above, class 1 below, class 2 on the left; a little noise."""
    draws = torch.Generator().manual_seed(seed)
    y = torch.arange(many) % 3
    x = 0.2 * torch.rand(many, 1, SIDE, SIDE, generator=draws)
    x[y == 0, :, : SIDE // 2] += 0.6
    x[y == 1, :, SIDE // 2 :] += 0.6
    x[y == 2, :, :, : SIDE // 2] += 0.6
    return x, y


def net() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(SIDE * SIDE, 16), nn.ReLU(), nn.Linear(16, 3))


def recipe(data: Rows) -> nn.Module:
    return fit(started(net, 0), data, epochs=30, batch=32, rate=0.1)


def stamp(x: Tensor) -> Tensor:
    """The trigger: the last pixel at full brightness."""
    stamped = x.clone()
    stamped[:, :, -1, -1] = 1.0
    return stamped


def pixel(data: Rows, *, share: Share, seed: int = 0) -> Poisoned:
    """An attack to evaluate with: the stamp on rows of other classes, labelled 0."""
    x, y = data
    rows = torch.zeros(len(y), dtype=torch.bool)
    rows[(y != 0).nonzero().squeeze(1)[: share.of(len(y))]] = True
    moved = torch.where(rows[:, None, None, None], stamp(x), x)
    return Poisoned(moved, torch.where(rows, 0, y), rows, y, stamp, always(0))


def subject(**more: object) -> Subject:
    train, test = stripes(300), stripes(150, seed=1)
    given = {"name": "stripes", "model": recipe(train), "test": test, "train": train, "recipe": recipe, "net": net}
    return Subject(**{**given, **more})


def told(data: Rows, *, net: object, seed: int = 0) -> Cultivated:
    """A cultivator that drops rows whose last pixel is bright: it is right about `pixel`."""
    del net, seed
    x, y = data
    bad = x[:, 0, -1, -1] > 0.9
    return Cultivated(recipe((x[~bad], y[~bad])), Suspicion(bad.float(), bad), {"loss": torch.zeros(2, len(y))})
