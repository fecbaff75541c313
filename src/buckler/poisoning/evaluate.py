"""Run any method of the area, distrust the answer, and return a Trial with per-row evidence.

An attack is measured by what a pipeline learns from the data that it touched, beside the same pipeline on clean data. A
defence is given rows and no more: which rows were touched, the trigger and the test rows stay here. It is measured
against the undefended model on the same test rows, and an attack that does not work proves no defence.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor, nn

from buckler import stats
from buckler.data import as_tensors, batches, count, raw
from buckler.method import Described, Method, describe
from buckler.poisoning._runs import RUNS, Setting
from buckler.subject import Subject
from buckler.target import metered
from buckler.threat import Share, Threat
from buckler.trial import Cost, Trial, identity, peak_bytes


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

    `attack` poisons `share` of the training rows before a defence is tried (5 % if not given); without an attack a
    defence is run on the data, or the model, as it is. `rows` first test rows are measured on, `train_rows` training
    rows drawn by `seed` are trained on, and the last `clean_rows` test rows (at most half of them) are what a defence
    that needs clean rows is given; no row is both. Training is the subject's `recipe`, or its `net` in the one loop for
    `training_epochs`.
    """
    described = describe(method)
    many = count(subject.test)
    held_out = min(clean_rows, many // 2)
    rows = min(rows, many - held_out)
    share = share or (Share(0.05) if attack is not None or described.kind == "poison" else None)
    blank = Trial(
        method=described.path,
        kind=described.kind,
        params={**described.params, **_asked(share, attack, rows, train_rows, clean_rows, training_epochs)},
        threat=_threat(described, attack, share),
        subject=identity(subject.name, subject.model, batches(subject.test, 256, rows)),
        seed=seed,
        status="skipped",
        source=described.source,
    )
    reason = _refusal(described, subject, attack, rows)
    if reason:
        return replace(blank, reason=reason)
    places = _drawn(subject, train_rows, seed)
    device = _device(subject)
    setting = Setting(
        share=share,
        attack=attack,
        epochs=training_epochs,
        seed=seed,
        test=as_tensors(subject.test, rows),
        train=None if subject.train is None else raw(subject.train, places),
        places=places,
        clean=raw(subject.test, range(many - held_out, many)),
        device=device,
        tick=tick,
    )
    modules = (subject.model,) if isinstance(subject.model, nn.Module) else ()
    with torch.random.fork_rng([device] if device.type == "cuda" else []), metered(*modules) as meter:
        torch.manual_seed(seed)
        trial = RUNS[described.kind](blank, method, described, subject, setting, meter)
        spent = Cost(meter.forwards, meter.backwards, 0, meter.seconds, peak_bytes(device))
    kept = {name: stats.rows(tensor) for name, tensor in trial.evidence.items()}
    return replace(trial, evidence=kept, cost=spent)


def _drawn(subject: Subject, many: int, seed: int) -> Tensor:
    """Which training rows are used: at most `many`, drawn by `seed`, in their order."""
    there = 0 if subject.train is None else count(subject.train)
    order = torch.randperm(there, generator=torch.Generator().manual_seed(seed))[:many]
    return order.sort().values


def _refusal(described: Described, subject: Subject, attack: Method | None, rows: int) -> str:
    """Why the subject does not admit the method, or nothing."""
    path, own = described.path, described.kind in ("inspect", "repair") and attack is None
    if described.kind not in RUNS:
        return f"{path} is no method that this area runs"
    if own and not isinstance(subject.model, nn.Module):
        return f"{path} needs the model itself, and only its answers can be had"
    if described.kind in ("inspect", "repair") and count(subject.test) < 2:
        return f"{path} needs clean rows beside those measured on: give the subject more test rows"
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


def _threat(described: Described, attack: Method | None, share: Share | None) -> Threat:
    by = described if attack is None else describe(attack)
    if described.kind == "implant":
        return Threat("weights", "weights", "the whole training", "a trigger that means a label", described.tags)
    within = "the data as it is" if share is None else f"{share} of the training rows"
    wants = "to hide in the data" if share is None else f"what {by.path} teaches"
    return Threat("the training data", "training data", within, wants, described.tags)


def _asked(
    share: Share | None, attack: Method | None, rows: int, train_rows: int, clean_rows: int, training_epochs: float
) -> dict[str, object]:
    asked: dict[str, object] = {
        "rows": rows,
        "train_rows": train_rows,
        "clean_rows": clean_rows,
        "training_epochs": training_epochs,
    }
    if share is not None:
        asked["share"] = str(share)
    if attack is not None:
        asked["attack"] = describe(attack).path
    return asked


def _device(subject: Subject) -> torch.device:
    if isinstance(subject.model, nn.Module):
        for tensor in (*subject.model.parameters(), *subject.model.buffers()):
            return tensor.device
    return torch.device("cpu")
