"""Who may see which rows: a thief's pool, rows to measure on, and a network to copy with; and what is paid for."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from buckler.data import as_tensors, count, drawn, split
from buckler.dice import fingerprint_rows
from buckler.method import Method, describe, left_open
from buckler.nets import SmallCNN
from buckler.target import Oracle, QueryBudgetExceeded, metered
from buckler.theft._setting import Setting
from buckler.train import started
from buckler.trial import Cost, Trial

LEAST = 20
"""The fewest rows of a pool, and the fewest that are measured on."""


@dataclass(frozen=True)
class Scene:
    """A thief's `pool` `(N, ...)`, the true labels of its rows where they have any, and rows `x`, `y` to measure on.

    `net` builds an untrained network of as many classes as the victim tells apart; `victim` `(N,)` is what that says of
    `x`.
    """

    pool: Tensor
    truth: Tensor | None
    x: Tensor
    y: Tensor
    net: Callable[[], nn.Module]
    victim: Tensor


def accounted(setting: Setting, begin: Callable[[Setting], Trial], measure: Callable[[Setting, Trial], Trial]) -> Trial:
    """What `measure` makes of the trial that `begin` begins, unless that one says why it is skipped.

    Its queries are all rows that the subject's model answered meanwhile, to whomever. Where the subject is an oracle
    whose own budget did not last, nothing is believed: the trial is inconclusive.
    """
    model = setting.subject.model
    oracle = model if isinstance(model, Oracle) else None
    asked, refused = (0, 0) if oracle is None else (oracle.asked, oracle.refused)
    with metered(*([model] if isinstance(model, nn.Module) else [])) as meter:
        blank = begin(setting)
        if blank.reason:
            return blank
        try:
            trial = measure(setting, blank)
        except QueryBudgetExceeded:
            if oracle is None or oracle.refused == refused:
                raise
            trial = blank
    if oracle is not None and oracle.refused > refused:
        reason = (
            f"the subject's own budget of queries ended after {oracle.asked - asked}: give it more, or ask for less"
        )
        trial = replace(blank, status="inconclusive", reason=reason)
    return replace(trial, cost=Cost(queries=meter.forwards if oracle is None else oracle.asked - asked))


def scene(setting: Setting) -> Scene:
    """The scene of one evaluation; half of the test rows, at most `rows`, are measured on whatever the pool is.

    A `ValueError` for too few rows, and for labels or a `net` that do not fit what the model answers.
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
    pool, x, y = (rows.to(setting.device) for rows in (pool, x, y))
    answers = (subject.model if isinstance(subject.model, Oracle) else Oracle(subject.model, "logits"))(x)
    victim = answers if answers.ndim == 1 else answers.argmax(1)
    known = 1 + int(torch.cat([victim, y] if truth is None else [victim, y, truth]).max())
    classes = known if answers.ndim == 1 else answers.shape[1]
    net = subject.net or small(x, classes)
    learns = _classes(net, x)
    if learns != classes and not (answers.ndim == 1 and learns > classes):
        raise ValueError(f"expected a `net` with an output for each of {classes} classes, got one with {learns}")
    if known > classes:
        raise ValueError(f"expected labels of the model's {classes} classes, got {known - 1} among the rows")
    return Scene(pool, truth, x, y, net, victim)


def _classes(net: Callable[[], nn.Module], x: Tensor) -> int:
    with torch.no_grad():
        return started(net, 0).to(x.device).eval()(x[:1]).shape[-1]


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
