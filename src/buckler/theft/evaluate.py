"""Run any method of the area, distrust the answer, and return a Trial with per-row evidence.

What is done is said where it is done, for each kind of method: see `_runs`.
"""

from __future__ import annotations

from collections.abc import Callable
from inspect import signature
from typing import Literal

from buckler.evaluation import running, spent
from buckler.method import Method, describe
from buckler.subject import Subject
from buckler.theft._runs import RUNS
from buckler.theft._setting import Setting, fitting
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
    models: int = 100,
    training_epochs: float = 15,
    seed: int = 0,
    tick: Callable[[float, int], None] | None = None,
) -> Trial:
    """Run `method` on the model of `subject`, and return what can be believed of it.

    A thief has a budget of each of `queries` in turn, hears what `reveals` says (`labels`, `scores`, `logits`, or
    scores with fewer classes and digits: `top3`, `digits2`, `top3-digits2`), and has a pool of inputs without labels:
    half of the test rows, at most `train_rows` training rows, or noise. Its copies are measured on at most `rows` of
    the other half of the test rows. A guard is measured by what `attack`, a thief, makes of a model with and without
    it; a detector of queries, with the largest budget or less, by whether it tells `attack` (or several, and attacks
    on single inputs) from honest clients. A guess has the largest budget and `models` of the thief's own to learn
    from, and is tried on as many others. A model trained here for comparison trains for `training_epochs`. `seed`
    decides what is drawn. A kind that this area does not run, and what it makes nothing of, is a `ValueError`.
    """
    described = describe(method)
    if described.kind not in RUNS:
        raise ValueError(f"{described.path}: expected a method that this area runs, got one of kind {described.kind}")
    words: dict[str, object] = {"queries": queries, "reveals": reveals, "pool": pool, "attack": attack}
    words |= {"models": models, "training_epochs": training_epochs}
    usual = signature(evaluate).parameters
    fitting(described.kind, {name: value for name, value in words.items() if value != usual[name].default})
    with running(subject, seed, tick) as (device, meter, told):
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
            models=models,
            training_epochs=training_epochs,
            seed=seed,
            device=device,
            meter=meter,
            told=told,
        )
        return spent(RUNS[described.kind](setting), meter, device)
