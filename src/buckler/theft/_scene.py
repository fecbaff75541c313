"""Who may see which rows: a thief's pool, rows that copies are measured on, and a network to copy with."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from buckler.data import as_tensors, count, drawn, split
from buckler.dice import fingerprint_rows
from buckler.method import Method, describe, left_open
from buckler.nets import SmallCNN
from buckler.target import Oracle
from buckler.theft._setting import Setting

LEAST = 20
"""The fewest rows of a pool, and the fewest that are measured on."""


@dataclass(frozen=True)
class Scene:
    """A thief's `pool` `(N, ...)`, the true labels of its rows where they have any, and rows `x`, `y` to measure on."""

    pool: Tensor
    truth: Tensor | None
    x: Tensor
    y: Tensor
    net: Callable[[], nn.Module]


def scene(setting: Setting) -> Scene:
    """The scene of one evaluation; half of the test rows, at most `rows`, are measured on whatever the pool is.

    A `ValueError` for too few rows.
    """
    subject, seed = setting.subject, setting.seed
    others, measured = split(subject.test, 0.5, seed=seed)
    x, y = as_tensors(measured, setting.rows)
    if setting.pool == "noise":
        many = max(setting.queries)
        pool, truth = torch.rand(many, *x.shape[1:], generator=torch.Generator().manual_seed(seed)), None
    else:
        data = others if setting.pool == "test" or subject.train is None else subject.train
        pool, truth = as_tensors(data, drawn(data, setting.train_rows, seed))
        apart = ~torch.isin(fingerprint_rows(pool), fingerprint_rows(x))
        pool, truth = pool[apart], truth[apart].to(setting.device)
    if min(len(pool), len(y)) < LEAST:
        raise ValueError(
            f"expected {LEAST} rows or more for a thief's pool and to measure on, got {len(pool)} and {len(y)}: "
            "give the subject more test rows"
        )
    net = subject.net or small(x, 1 + int(torch.cat([y] if truth is None else [y, truth.cpu()]).max()))
    return Scene(pool.to(setting.device), truth, x.to(setting.device), y.to(setting.device), net)


def small(x: Tensor, classes: int) -> Callable[[], nn.Module]:
    """What a thief who does not know the victim's network takes for rows such as `x` `(B, ...)`."""
    if x.ndim == 4 and x.shape[2] == x.shape[3]:
        return partial(SmallCNN, channels=x.shape[1], side=x.shape[2], classes=classes)
    return partial(_flat, x[0].numel(), classes)


def _flat(sides: int, classes: int) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(sides, 128), nn.ReLU(), nn.Linear(128, classes))


def robbed(setting: Setting, thief: Method, oracle: Oracle, scene: Scene) -> nn.Module:
    """What a thief makes of an oracle's answers, evaluating; a `ValueError` for a copy that does not answer rows."""
    given: dict[str, Any] = {"net": scene.net, "seed": setting.seed}
    began = time.perf_counter()
    copy = thief(oracle, scene.pool, **{name: given[name] for name in left_open(thief, *given)})
    setting.meter.method_seconds += time.perf_counter() - began
    setting.meter.watch(copy)
    answers = copy.eval()(scene.x[:2])
    if answers.ndim != 2 or len(answers) != 2:
        raise ValueError(
            f"{describe(thief).path}: expected a copy with logits (2, K) for 2 rows, got {tuple(answers.shape)}"
        )
    return copy


def labels(model: nn.Module | Oracle, x: Tensor) -> Tensor:
    """What a model, or a copy, says of rows: `(B,)`."""
    return (model if isinstance(model, Oracle) else Oracle(model, "labels")).labels(x)


def enough(setting: Setting) -> str:
    """Why the subject does not admit the pool that was asked for, or nothing."""
    if setting.pool == "train" and setting.subject.train is None:
        return "a pool of training rows needs them: give the subject its `train`"
    if count(setting.subject.test) < 2 * LEAST:
        return f"a thief's pool and rows to measure on are halves of the test rows: give {2 * LEAST} or more"
    return ""
