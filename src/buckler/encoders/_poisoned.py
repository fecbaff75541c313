"""Poison in what an encoder learns from, judged by what is learnt above it: beside an encoder of the clean rows.

The adversary touches rows without labels. A user's probe learns from clean rows that have them:
from all of them, and from few, where it leans on what pre-training made alike. What the adversary wants of some inputs,
or of those with a trigger, is counted beside the same probes above the clean encoder; who wants nothing of any input
wants the encoder to be good for nothing.
"""

from __future__ import annotations

import inspect
import time
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor, nn

from buckler import stats
from buckler.data import Poisoned, Rows, floats, held_as
from buckler.embedding import embedded, probe
from buckler.encoders._pretrained import by_few
from buckler.encoders._scene import Task, body, pretrained, refusal, scene, tasks
from buckler.encoders._setting import Setting
from buckler.evaluation import skipped
from buckler.method import describe, plain
from buckler.threat import Share, Threat
from buckler.trial import Check, Trial

PREY, SHOWN = 5, 6
"""How many inputs an attack hunts at once, and how many rows are kept as pictures."""
IGNORED = "a clean encoder ignores it"


def poisoning(setting: Setting) -> Trial:
    """What a probe answers above an encoder that learnt from rows which the method touched, and above a clean one."""
    described = setting.described
    share = setting.share or _own_share(setting)
    blank = setting.blank(
        Threat("the training data", "training data", f"{share} of the training rows", _wants(setting), described.tags),
        setting.asked("rows", "train_rows", "encoder_steps")
        | {"share": str(share), "pretraining": plain(setting.pretraining)},
    )
    setting = replace(setting, subject=replace(setting.subject, encoder=None), share=share)
    if reason := refusal(setting):
        return skipped(blank, reason)
    clean = scene(setting)
    setting.told(0.4)
    task = tasks(setting, clean)[0]
    learnt = cast(Rows, clean.learnt)
    made = _touched(setting, learnt, task)
    setting.told(0.6)
    encoder = pretrained(setting, made.seen)
    setting.told(0.9)
    evidence = _answers(encoder, task, made, setting.seed)
    control = _answers(cast(nn.Module, clean.encoder), task, made, setting.seed)
    evidence |= {f"control_{name}": answers for name, answers in control.items()}
    evidence["lost"] = control["correct"].to(torch.int8) - evidence["correct"].to(torch.int8)
    evidence["few_lost"] = control["few_correct"] - evidence["few_correct"]
    if "success" in evidence:
        evidence["beyond"] = evidence["success"].to(torch.int8) - control["success"].to(torch.int8)
        evidence["few_beyond"] = evidence["few_success"] - control["few_success"]
    found = {name: _estimate(value, name) for name, value in evidence.items()}
    checks = (_ignored(found["control_success"], task.classes),) if "success" in found else ()
    return replace(
        blank,
        status="ok",
        checks=checks,
        estimates=found,
        evidence=evidence | {"touched": made.rows} | _pictures(made, learnt, task),
    )


def _estimate(value: Tensor, name: str) -> stats.Estimate:
    if value.is_floating_point():
        return stats.mean(value, name)
    return stats.share(value, name) if value.dtype == torch.bool else stats.difference(value, name)


def _own_share(setting: Setting) -> Share:
    """What the method is configured with, or asks for by itself, else 1 %."""
    knob = inspect.signature(setting.method).parameters["share"].default
    return knob if isinstance(knob, Share) else Share(0.01)


def _wants(setting: Setting) -> str:
    if "prey" in setting.described.knobs:
        return "chosen clean inputs taken for another class downstream"
    return "a trigger that means a class downstream" if "target" in setting.described.knobs else "useless features"


def _touched(setting: Setting, learnt: Rows, task: Task) -> Poisoned:
    """What the attack makes of the rows; a `ValueError` where it does not keep to what it says of it."""
    given: dict[str, Any] = {"share": setting.share, "seed": setting.seed}
    given["prey"] = _prey(task, (setting.share or Share(1)).of(len(learnt[1])), setting.seed)
    build = body(setting.subject)
    given["net"] = lambda: cast(Any, build)().to(setting.device)
    began = time.perf_counter()
    made = cast(
        Poisoned,
        setting.method(
            (learnt[0].clone(), learnt[1].clone()), **{k: given[k] for k in ("share", *setting.left_open(*given))}
        ),
    )
    setting.meter.method_seconds += time.perf_counter() - began
    path = describe(setting.method).path
    if made.x.shape != learnt[0].shape or made.x.dtype != learnt[0].dtype or not torch.equal(made.y, learnt[1]):
        raise ValueError(f"{path}: expected rows and labels such as it was given, got others")
    secret = int(((made.x != learnt[0]).flatten(1).any(1) & ~made.rows).sum())
    if secret or int(made.rows.sum()) > (setting.share or Share(1)).of(len(learnt[1])):
        raise ValueError(
            f"{path}: expected changes in {setting.share} of the rows, and in those that it says it touched, "
            f"got {int(made.rows.sum())} of {len(learnt[1])} and {secret} others"
        )
    return made


def _prey(task: Task, most: int, seed: int) -> Rows:
    """Test rows, and for each a label that is not its own, both drawn by `seed`."""
    draw = torch.Generator().manual_seed(seed)
    rows = torch.randperm(len(task.test[1]), generator=draw)[: min(PREY, most)]
    other = torch.randint(1, task.classes, (len(rows),), generator=draw)
    return task.test[0][rows], (task.test[1][rows] + other) % task.classes


def _answers(encoder: nn.Module, task: Task, made: Poisoned, seed: int) -> dict[str, Tensor]:
    """Whether test rows are answered right, by a probe and by probes of few labels, and attacked ones as wanted."""
    attacked = _attacked(made, task)
    moved = task.test[0][:0] if attacked is None else attacked[0]
    known = embedded(encoder, task.train[0])
    asked, hit = embedded(encoder, torch.cat([floats(task.test[0]), floats(moved)])).tensor_split([len(task.test[1])])
    above = probe(known, task.train[1], classes=task.classes, seed=seed)
    found = {"correct": above(asked).argmax(1) == task.test[1], "few_correct": by_few(known, asked, task, seed)}
    if attacked is not None:
        found["success"] = above(hit).argmax(1) == attacked[1]
        found["few_success"] = by_few(known, hit, task._replace(test=attacked), seed)
    return found


def _attacked(made: Poisoned, task: Task) -> Rows | None:
    """The inputs of which the adversary wants something, as they are given to the encoder, and the labels wanted."""
    if made.trigger is None or made.wanted is None:
        return made.prey
    x, y = task.test
    able = made.wanted(y) != y
    return floats(held_as(made.x, made.trigger(floats(x[able])))), made.wanted(y[able])


def _ignored(control: stats.Estimate, classes: int) -> Check:
    says = f"A clean encoder's probe answers {control.value:.1%} of the attacked inputs as wanted"
    return Check(IGNORED, control.low <= 1 / classes, f"{says}; chance is {1 / classes:.1%}.", control.value)


def _pictures(made: Poisoned, learnt: Rows, task: Task) -> dict[str, Tensor]:
    """A few touched rows, as they were and as they are, and a few attacked inputs with the label wanted for them."""
    some = made.rows.nonzero().squeeze(1)[:SHOWN]
    found = {"poison_before": floats(learnt[0][some]), "poison_after": floats(made.x[some])}
    attacked = _attacked(made, task)
    if attacked is not None:
        found |= {"attacked": floats(attacked[0][:SHOWN]), "attacked_wanted": attacked[1][:SHOWN]}
    return found
