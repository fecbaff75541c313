"""Run any method of the area, distrust the answer, and return a Trial with per-row evidence.

What is done is said where it is done, for each kind of method: see `_runs`.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from buckler.evaluation import running, spent
from buckler.method import Method, describe
from buckler.privacy._runs import RUNS
from buckler.privacy._setting import Setting
from buckler.subject import Subject
from buckler.trial import Trial

DEFENDED = {("audit", "protect"), ("infer", "guard")}
"""The kinds of method that are run with a defence, and its kind."""


def evaluate(
    method: Method,
    subject: Subject,
    *,
    rows: int = 2000,
    models: int = 16,
    views: int = 1,
    train_rows: int = 10_000,
    training_epochs: float = 15,
    defence: Method | None = None,
    keep: str | None = None,
    seed: int = 0,
    tick: Callable[[float, int], None] | None = None,
) -> Trial:
    """Run `method` on the model, or the training, of `subject`, and return what can be believed of it.

    An inference of membership is tried on `rows` rows, about half of them members. Without shadows it attacks the
    subject's own model, with training rows as members and test rows as the rest. With `shadows` it attacks a model
    trained on half of at most `train_rows` training rows, drawn by `seed`, with `models` shadow models on other halves,
    each asked in `views` ways. Training is the subject's `recipe`, or its `net` in the one loop for `training_epochs`.
    A defence by training is measured and attacked beside that training, on the same halves, with shadows of its own; an
    audit is of `defence`, or of the plain loop. A guard on answers is attacked beside the same model without it, by who
    knows it and who does not; as the `defence` of an inference, of any area, it stands before target, control and
    shadows. What forgets rows forgets a quarter of what it learnt. `keep` is a
    folder for the shadows' answers, which belongs to one subject: trials share them, and one that was stopped goes on.
    Raises `ValueError` for a kind that this area does not run, and for a `defence` of another kind.
    """
    described = describe(method)
    if described.kind not in RUNS:
        raise ValueError(f"{described.path}: expected a method that this area runs, got one of kind {described.kind}")
    if defence is not None and (described.kind, describe(defence).kind) not in DEFENDED:
        raise ValueError(
            f"{described.path}: expected a defence by training only to audit, and a guard only before an inference of "
            f"membership, got {describe(defence).path}"
        )
    with running(subject, seed, tick) as (device, meter, told):
        setting = Setting(
            method=method,
            described=described,
            subject=subject,
            rows=rows,
            models=models,
            views=views,
            train_rows=train_rows,
            training_epochs=training_epochs,
            defence=defence,
            seed=seed,
            keep=None if keep is None else Path(keep),
            device=device,
            meter=meter,
            told=told,
        )
        return spent(RUNS[described.kind](setting), meter, device)
