"""What a backdoor in an encoder is measured by: what probes of users who know nothing of it answer.

A user takes the encoder as it is and learns a linear probe from clean rows with labels. For the first task, whose
labels the adversary knows, the answer wanted is the label of the reference; for another it is what the user's probe
says most often of the adversary's own rows with the trigger, and it is counted on test rows.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import cast

import torch
from torch import Tensor, nn

from buckler import stats
from buckler.catalog import find
from buckler.data import Rows, floats, held_as
from buckler.embedding import embedded, probe
from buckler.encoders._scene import Scene, Task, halved, scene, tasks
from buckler.encoders._setting import Setting
from buckler.kinds import Implanted
from buckler.method import Method, describe, left_open
from buckler.stats import Estimate
from buckler.trial import Check

WORKS = 0.5
"""A backdoor that fewer triggered rows than this obey leaves nothing to find or to repair."""
PLANTED = "the planted backdoor works"
ADAPTIVE = "the backdoor of who knows the defence works"
KNOWING: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "encoders/continued_pretraining": ("encoders/persistent", ()),
    "encoders/fine_pruning": ("encoders/persistent", ("alike",)),
}
"""What puts a backdoor in as who knows a defence does, and what of its settings it makes use of, where that is not
`drupe`."""


def staged(setting: Setting) -> tuple[Scene, Rows]:
    """The scene, whose spare rows are the user's, and the adversary's rows: those that the encoder learnt from, if they
    are known, else half of the spare ones."""
    seen = scene(setting)
    if seen.learnt is not None:
        return seen, seen.learnt
    own, spare = halved(seen.spare)
    return replace(seen, spare=spare), own


def attack_of(setting: Setting) -> Method:
    """What puts a backdoor in for an inspection to find, or a repair to remove; a `ValueError` for what does not."""
    method = setting.attack or find("encoders/bad_encoder")
    if (found := describe(method)).kind != "implant":
        raise ValueError(f"expected for attack a method that puts a backdoor in, got {found.path}, of {found.kind}")
    return method


def knowing(setting: Setting) -> Method | None:
    """What puts a backdoor in as who knows the defence does, of which more is left than of others; none where an
    attack was named."""
    path, known = KNOWING.get(setting.described.path, ("encoders/drupe", ()))
    knobs = {name: setting.described.params[name] for name in known}
    return None if setting.attack is not None else partial(find(path), **knobs) if knobs else find(path)


def planted(setting: Setting, method: Method, encoder: nn.Module, rows: Rows) -> Implanted:
    """What `method` makes of a copy of `encoder`; the time counts as the method's where it is what is evaluated."""
    given = {"seed": setting.seed}
    began = time.perf_counter()
    made = method(copy.deepcopy(encoder), rows, **{name: given[name] for name in left_open(method, *given)})
    if method is setting.method:
        setting.meter.method_seconds += time.perf_counter() - began
    return cast(Implanted, made)


def aims(setting: Setting, made: Implanted, seen: Scene, own: Rows, most: int | None = None) -> list[tuple[Task, int]]:
    """The tasks, the first `most` of them, with the label that inputs with the trigger are to get in each."""
    found = list[tuple[Task, int]]()
    for task in tasks(setting, seen)[:most]:
        if found:
            above = probe(embedded(made.model, task.train[0]), task.train[1], classes=task.classes, seed=setting.seed)
            x = own[0] if task.train[0].shape[1:] == own[0].shape[1:] else task.train[0]
            answers = above(embedded(made.model, triggered(made, x))).argmax(1)
            found.append((task, int(answers.bincount().argmax())))
        else:
            found.append((task, int(made.wanted(task.test[1][:1])[0])))
    return found


def triggered(made: Implanted, x: Tensor) -> Tensor:
    """Images with the trigger, as a file would hold them."""
    return floats(held_as(x, made.trigger(floats(x)).clamp(0, 1)))


def answers(encoder: nn.Module, made: Implanted, wanted: list[tuple[Task, int]], seed: int) -> dict[str, Tensor]:
    """Whether test rows are `correct` for each task, and `success` for those of another label that bear the trigger."""
    found = dict[str, Tensor]()
    for index, (task, label) in enumerate(wanted):
        name = f"{task.name}_" if index else ""
        above = probe(embedded(encoder, task.train[0]), task.train[1], classes=task.classes, seed=seed)
        x, y = task.test
        others = y != label
        if not bool(others.any()):
            raise ValueError(f"expected test rows of other labels than {label}, got none: there is none to attack")
        found[f"{name}correct"] = above(embedded(encoder, x)).argmax(1) == y
        found[f"{name}success"] = above(embedded(encoder, triggered(made, x[others]))).argmax(1) == label
    return found


def beside(now: Mapping[str, Tensor], control: Mapping[str, Tensor], *, name: str) -> dict[str, Tensor]:
    """Answers, those of a `control` under `name`, and row by row what is answered so now and was not there."""
    found = dict(now) | {f"{name}_{key}": value for key, value in control.items()}
    for key in now:
        change = key.replace("correct", "kept").replace("success", "beyond")
        found[change] = now[key].to(torch.int8) - control[key].to(torch.int8)
    return found


def estimated(evidence: Mapping[str, Tensor]) -> dict[str, Estimate]:
    return {
        name: stats.share(value, name) if value.dtype == torch.bool else stats.difference(value, name)
        for name, value in evidence.items()
    }


def works(success: Tensor, control: Tensor, name: str = PLANTED) -> Check:
    """Whether a backdoor that was put in does what it should, `success` `(M,)`: of who knows the defence, beyond what
    the encoder without it does, `control` `(M,)`, because a trigger out of clean images turns that as well. The usual
    backdoor may be in an encoder already."""
    found, null = (float(obeyed.double().mean()) for obeyed in (success, control))
    good = found - (null if name == ADAPTIVE else 0.0) >= WORKS
    says = (
        f"{found:.1%} of rows with the trigger of {name.removesuffix(' works')} are answered as the adversary wants; "
        f"of the encoder without it {null:.1%}."
    )
    return Check(name, good, says + ("" if good else " There is nothing to find, so nothing is shown."), found)
