"""Run any method of the area, distrust the answer, and return a Trial with per-row evidence.

What is done is said where it is done, for each kind of method: see `_runs`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import nn

from buckler.evaluation import spent
from buckler.method import Method, describe
from buckler.subject import Subject
from buckler.target import metered
from buckler.theft._runs import RUNS
from buckler.theft._setting import Setting
from buckler.trial import Trial


def evaluate(
    method: Method,
    subject: Subject,
    *,
    rows: int = 1000,
    queries: tuple[int, ...] = (100, 300, 1000),
    reveals: str = "scores",
    pool: Literal["test", "train", "noise"] = "test",
    attack: Method | None = None,
    train_rows: int = 10_000,
    training_epochs: float = 15,
    seed: int = 0,
    tick: Callable[[float, int], None] | None = None,
) -> Trial:
    """Run `method` on the model of `subject`, and return what can be believed of it.

    A thief has a budget of each of `queries` in turn, hears what `reveals` says (`labels`, `scores`, `logits`, or
    scores with fewer classes and digits: `top3`, `digits2`, `top3-digits2`), and has a pool of inputs without labels:
    half of the test rows, at most `train_rows` training rows, or noise. Its copies are measured on at most `rows` of
    the other half of the test rows. A guard is measured by what `attack`, a thief, makes of a model with and without
    it. A model trained here for comparison trains for `training_epochs`. `seed` decides what is drawn. A kind that this
    area does not run, or a budget of no queries, is a `ValueError`.
    """
    described = describe(method)
    if described.kind not in RUNS:
        raise ValueError(f"{described.path}: expected a method that this area runs, got one of kind {described.kind}")
    if not queries or min(queries) < 1:
        raise ValueError(f"expected budgets of at least one query, got {', '.join(map(str, queries)) or 'none'}")
    device = subject.device
    modules = (subject.model,) if isinstance(subject.model, nn.Module) else ()
    with torch.random.fork_rng([device] if device.type == "cuda" else []), metered(*modules) as meter:
        torch.manual_seed(seed)

        def told(done: float) -> None:
            if tick is not None:
                tick(done, meter.forwards)

        setting = Setting(
            method=method,
            described=described,
            subject=subject,
            rows=rows,
            queries=tuple(sorted({*queries})),
            reveals=reveals,
            pool=pool,
            attack=attack,
            train_rows=train_rows,
            epochs=training_epochs,
            seed=seed,
            device=device,
            meter=meter,
            told=told,
        )
        return spent(RUNS[described.kind](setting), meter, device)
