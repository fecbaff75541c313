"""Run any method of the area, distrust the answer, and return a Trial with per-row evidence.

What is done is said where it is done, for each kind of method: see `_runs`.
"""

from __future__ import annotations

from collections.abc import Callable
from inspect import signature
from pathlib import Path

from buckler.catalog import find
from buckler.encoders._runs import RUNS
from buckler.encoders._setting import Setting, fitting
from buckler.evaluation import running, spent
from buckler.method import Method, describe
from buckler.subject import Subject
from buckler.threat import Ball, Share
from buckler.trial import Trial

MEASURES = "encoder"
"""What of the subject is looked at before minutes are spent: its encoder, and not the model."""


def evaluate(
    method: Method,
    subject: Subject,
    *,
    rows: int = 1000,
    train_rows: int = 20_000,
    encoder_steps: int = 500,
    pretraining: Method | None = None,
    queries: tuple[int, ...] = (100, 300, 1000),
    ball: Ball | None = None,
    share: Share | None = None,
    attack: Method | None = None,
    models: int = 10,
    training_epochs: float = 15,
    seed: int = 0,
    keep: str | None = None,
    tick: Callable[[float, int], None] | None = None,
) -> Trial:
    """Run `method` on the subject's encoder, or on one pre-trained on its rows, and return what can be believed of it.

    Where the subject brings no `encoder`, its `body`, or its `net` without the last layer, is trained on half of at
    most `train_rows` training rows, without their labels, by `pretraining` (SimCLR if none is named) in `encoder_steps`
    steps; the other half are the adversary's or the user's, who learns from their labels what the encoder is used for.
    At most `rows` test rows are what is measured on. `queries`, `ball`, `share`, `attack` and `models` are for the
    kinds of method that have a use for them: budgets of questions, how far an input may be moved, how many rows may be
    touched, what a guard is tried against, and how many encoders are made to compare. A network trained with labels for
    comparison trains for `training_epochs`. `seed` decides what is drawn; `keep` is a folder in which trials of one
    subject share encoders. A kind that this area does not run, and what it makes nothing of, is a `ValueError`.
    """
    described = describe(method)
    run = RUNS.get(described.path, RUNS.get(described.kind))
    if run is None:
        raise ValueError(f"{described.path}: expected a method that this area runs, got one of kind {described.kind}")
    words: dict[str, object] = {"queries": queries, "ball": ball, "share": share, "attack": attack, "models": models}
    words |= {"pretraining": pretraining, "training_epochs": training_epochs}
    usual = signature(evaluate).parameters
    asked = {name: value for name, value in words.items() if value != usual[name].default}
    fitting(described.kind, asked, described.path)
    with running(subject, seed, tick) as (device, meter, told):
        setting = Setting(
            method=method,
            described=described,
            subject=subject,
            rows=rows,
            train_rows=train_rows,
            encoder_steps=encoder_steps,
            pretraining=pretraining or find("encoders/simclr"),
            queries=tuple(sorted({*queries})),
            ball=ball,
            share=share,
            attack=attack,
            models=models,
            training_epochs=training_epochs,
            seed=seed,
            keep=None if keep is None else Path(keep),
            device=device,
            meter=meter,
            told=told,
        )
        return spent(run(setting), meter, device)
