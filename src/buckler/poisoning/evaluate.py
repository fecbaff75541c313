"""Run any method of the area, distrust the answer, and return a Trial with per-row evidence.

An attack is measured by what a pipeline learns from the data that it touched, beside the same pipeline on clean data,
after what it says that it touched was compared with what it did. A defence is given rows and no more: which rows were
touched, the trigger and the test rows stay here. It is measured against the undefended model on the same test rows, and
an attack that does not work proves no defence.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import replace
from typing import cast

import torch
from torch import Tensor, nn

from buckler.data import Data, Poisoned, Rows, as_tensors, batches, count, drawn, raw
from buckler.evaluation import running, spent
from buckler.method import Described, Method, describe, plain
from buckler.poisoning._look import logits
from buckler.poisoning._runs import RUNS
from buckler.poisoning._setting import Setting, attacked, left_open
from buckler.subject import Subject
from buckler.target import Oracle
from buckler.threat import Share, Threat
from buckler.trial import Trial, identity


def evaluate(
    method: Method,
    subject: Subject,
    *,
    share: Share | None = None,
    attack: Method | None = None,
    rows: int = 1000,
    train_rows: int = 10_000,
    clean_rows: int = 500,
    training_epochs: float = 15,
    seed: int = 0,
    tick: Callable[[float, int], None] | None = None,
) -> Trial:
    """Run `method` on the training data, or the model, of `subject`, and return what can be believed of it.

    `attack` poisons `share` of the training rows before a defence is tried (if not given what the attack asks for by
    itself, else 5 %); without an attack a defence is run on the data, or the model, as it is. `rows` first test rows
    are measured on, `train_rows` training rows drawn by `seed` are trained on, and the last `clean_rows` test rows (at
    most half of them) are given to a defence that needs clean rows, and are then not measured on. Training is the
    subject's `recipe`, or its `net` in the one loop for `training_epochs`. Raises `ValueError` for a share without an
    attack, for an attack that changes rows that it does not name, and for training data, a recipe or a net of which
    nothing can be measured.
    """
    described = describe(method)
    _asked_for(described, share, attack, {"rows": rows, "train_rows": train_rows, "clean_rows": clean_rows})
    many = count(subject.test)
    takes_clean = described.kind in ("inspect", "repair") or _asks_for_clean(method, attack)
    held_out = min(clean_rows, many // 2) if takes_clean else 0
    rows = min(rows, many - held_out)
    by = method if described.kind == "poison" else attack
    share = share if share is not None or by is None else _own_share(by)
    asked: dict[str, object] = {
        "rows": rows,
        "train_rows": train_rows,
        "clean_rows": clean_rows,
        "training_epochs": training_epochs,
        "share": None if share is None else str(share),
        "attack": None if attack is None else plain(attack),
    }
    filled = {"seed": seed, "clean": f"{held_out} rows"}
    asked |= {name: value for name, value in filled.items() if name in left_open(method, described)}
    blank = Trial(
        method=described.path,
        kind=described.kind,
        params={**described.params, **{name: value for name, value in asked.items() if value is not None}},
        threat=_threat(described, by, share),
        subject=identity(subject.name, subject.model, batches(subject.test, 256, rows), subject.encoder),
        seed=seed,
        status="skipped",
        source=described.source,
    )
    reason = _refusal(described, subject, attack, clean=not takes_clean or held_out > 0)
    if reason:
        return replace(blank, reason=reason)
    test = as_tensors(subject.test, rows)
    data = None if _on_its_own(described, attack) else subject.train
    places = torch.arange(0) if data is None else drawn(data, train_rows, seed)
    train = None if data is None else _training(data, places, test, subject.model)
    with running(subject, seed) as (device, meter, _):
        setting = Setting(
            method=method,
            described=described,
            subject=subject,
            meter=meter,
            share=share,
            attack=attack,
            epochs=training_epochs,
            seed=seed,
            test=test,
            train=train,
            places=places,
            clean=raw(subject.test, range(many - held_out, many)) if held_out else None,
            device=device,
            tick=tick,
        )
        touched = attacked(setting)
        if touched is not None:
            blank = replace(blank, threat=_with_covers(blank.threat, touched))
        return spent(RUNS[described.kind](blank, setting, touched), meter, device)


def _asked_for(described: Described, share: Share | None, attack: Method | None, many: dict[str, int]) -> None:
    """A `ValueError` for too few rows, a share that nothing touches, or an attack that is none or of no use here."""
    for name, value in many.items():
        least = 0 if name == "clean_rows" else 1
        if value < least:
            raise ValueError(f"expected {name} of {least} or more, got {value}")
    if attack is not None and described.kind in ("poison", "implant"):
        raise ValueError(f"{described.path}: expected no attack beside it, as it is one, got {describe(attack).path}")
    if attack is not None and describe(attack).kind != "poison":
        raise ValueError(f"expected an attack on training data, got {describe(attack).path}, which is none")
    if share is not None and attack is None and described.kind != "poison":
        raise ValueError(
            f"{described.path}: expected an attack that touches {share} of the rows, got none: name one, or no share"
        )


def _own_share(attack: Method) -> Share:
    """What the attack is configured with, or asks for by itself, else 5 %."""
    knob = inspect.signature(attack).parameters.get("share")
    return knob.default if knob is not None and isinstance(knob.default, Share) else Share(0.05)


def _on_its_own(described: Described, attack: Method | None) -> bool:
    """Whether the subject's own model is what is looked at, and no training data."""
    return described.kind in ("inspect", "repair") and attack is None


def _asks_for_clean(*methods: Method | None) -> bool:
    return any("clean" in left_open(method, describe(method)) for method in methods if method is not None)


def _training(data: Data, places: Tensor, test: Rows, model: nn.Module | Oracle) -> Rows:
    """The training rows at `places`; a `ValueError` unless they are rows such as `test` is, of the model's classes."""
    try:
        x, y = raw(data, places)
    except ValueError as error:
        raise ValueError(f"train: {error}") from error
    if x.shape[1:] != test[0].shape[1:]:
        raise ValueError(
            f"train: expected rows {tuple(test[0].shape[1:])}, as the test rows are, got {tuple(x.shape[1:])}"
        )
    many = logits(model, (test[0][:1], test[1][:1])).shape[-1] if isinstance(model, nn.Module) else 0
    if many and int(y.max()) >= many:
        row = int(places[y.argmax()])
        raise ValueError(f"train: expected labels of the model's {many} classes, got {int(y.max())} at row {row}")
    return x, y


def _refusal(described: Described, subject: Subject, attack: Method | None, *, clean: bool) -> str:
    """Why the subject does not admit the method, or nothing; `clean` says whether there are the clean rows it needs."""
    path, own = described.path, _on_its_own(described, attack)
    if described.kind not in RUNS:
        return f"{path} is no method that this area runs"
    if own and not isinstance(subject.model, nn.Module):
        return f"{path} needs the model itself, and only its answers can be had"
    if not clean:
        return f"{path} needs clean rows beside those measured on: give the subject more test rows, clean_rows above 0"
    if own:
        return ""
    if subject.train is None:
        return f"{path} works on training data: give the subject its `train`"
    trains = described.kind != "sift" or described.holds == "model"
    if trains and subject.recipe is None and subject.net is None:
        return f"{path} is measured by training: give the subject its `recipe` or its `net`"
    if "net" in described.knobs and "net" not in described.params and subject.net is None:
        return f"{path} trains a network: give the subject its `net`"
    return ""


def _threat(described: Described, by: Method | None, share: Share | None) -> Threat:
    if described.kind == "implant":
        return Threat("weights", "weights", "the whole training", "a trigger that means a label", described.tags)
    if by is None:
        return Threat("the training data", "training data", "the data as it is", "to hide in the data", described.tags)
    within, wants = f"{share} of the training rows", f"what {_in_words(by)} teaches"
    return Threat("the training data", "training data", within, wants, described.tags)


def _in_words(attack: Method) -> str:
    """The path of an attack, with what it is configured with: `poisoning/badnets (size 5)`."""
    configured = plain(attack)
    if not isinstance(configured, dict):
        return str(configured)
    knobs = dict(cast("dict[str, object]", configured))
    path = knobs.pop("method")
    own = ", ".join(f"{name} {value}" for name, value in knobs.items() if name != "share")
    return f"{path} ({own})" if own else str(path)


def _with_covers(threat: Threat, touched: Poisoned) -> Threat:
    """The threat with the rows that were touched beyond the share, as covers."""
    more = int(touched.rows.sum()) - int(touched.poison.sum())
    return replace(threat, within=f"{threat.within}, {more / len(touched.y):.1%} more as covers") if more else threat
