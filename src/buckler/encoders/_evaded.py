"""Evasion of an encoder: examples that are made on it alone, judged by what was learnt above it for every task.

Beside them are noise of the same size, which must do little, and attacks on each task's whole classifier by an
adversary who knows it and the labels, which are the strongest that there is.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from buckler import stats
from buckler.catalog import find
from buckler.combine import worst_case
from buckler.data import floats
from buckler.dice import Dice
from buckler.embedding import Probed, probed
from buckler.encoders._scene import refusal, scene, tasks
from buckler.encoders._setting import Setting
from buckler.evaluation import skipped
from buckler.method import plain
from buckler.threat import Ball, Threat
from buckler.trial import Check, Trial

RADII: Mapping[str, float] = {"linf": 0.1, "l2": 0.5}
"""How far inputs may be moved where neither the evaluation nor the subject says."""
EXAMPLES = 6
LEGAL, NOISE, REFERENCE = "examples keep the limit", "noise does not do it", "the reference is the stronger"


def evaded(setting: Setting) -> Trial:
    """What each task's probe answers to inputs that the method moved on the encoder, or, where it imitates, how often
    that is what it answers to the inputs imitated."""
    described, ball = setting.described, reference(setting)
    wants = "the features of a chosen input" if described.params.get("targeted") else "other features"
    blank = setting.blank(Threat("weights", "input", str(ball), wants, described.tags), words(setting, ball))
    if reason := refusal(setting, white=True):
        return skipped(blank, reason)
    seen = scene(setting)
    encoder = cast(nn.Module, seen.encoder)
    setting.meter.watch(encoder)
    setting.told(0.3)
    used = tasks(setting, seen)
    images = {id(task.test[0]): floats(task.test[0]).to(setting.device) for task in used}
    moved, strange, aims = dict[int, Tensor](), dict[int, Tensor](), dict[int, Tensor]()
    given: dict[str, Any] = {"seed": setting.seed, "pool": floats(seen.spare[0])}
    for key, x in images.items():
        aims[key] = _others(len(x), setting.seed)
        given["chosen"] = x[aims[key]]
        began = time.perf_counter()
        found = setting.method(encoder, x, ball=ball, **{n: given[n] for n in setting.left_open(*given)}).detach()
        setting.meter.method_seconds += time.perf_counter() - began
        strange[key] = ~ball.contains(x, found)
        moved[key] = torch.where(strange[key].view(-1, *[1] * (x.ndim - 1)), x, found)
    setting.told(0.6)
    evidence, judged = dict[str, Tensor](), dict[str, Probed]()
    for task in used:
        key, name = id(task.test[0]), "" if task is used[0] else f"{task.name}_"
        model = judged[name] = probed(encoder, task.train, classes=task.classes, seed=setting.seed)
        x, y = images[key], task.test[1].to(setting.device)
        found = against(model, x, y, moved[key], ball, setting.seed, known=not name)
        evidence |= {f"{name}{k}": v for k, v in found.items()}
        if described.params.get("targeted"):
            wanted = said(model, x)[aims[key]]
            other = wanted != said(model, x)
            for k, there in (("imitated", moved[key]), ("noise_imitated", noise(x, ball, setting.seed))):
                evidence[f"{name}{k}"] = (said(model, there) == wanted)[other]
    first = id(used[0].test[0])
    evidence |= _shown(judged[""], images[first], moved[first])
    evidence |= {"label": used[0].test[1], "answer": said(judged[""], moved[first])}
    illegal = int(sum(int(s.sum()) for s in strange.values()))
    return _finished(replace(blank, params={**blank.params, "tasks": [t.name for t in used]}), evidence, illegal)


def against(
    model: nn.Module, x: Tensor, y: Tensor, moved: Tensor, ball: Ball, seed: int, *, known: bool = True
) -> dict[str, Tensor]:
    """Which rows `x` `(B, ...)` with labels `y` a classifier answers rightly `(B,)`: as they are, `moved`, with noise,
    and, where that is wanted, attacked by somebody to whom all of it is `known`."""
    correct = said(model, x) == y
    found = {
        "correct": correct,
        "robust": correct & (said(model, moved) == y),
        "noise_correct": correct & (said(model, noise(x, ball, seed)) == y),
    }
    if known:
        there = x.clone()
        if bool(correct.any()):
            there[correct] = strongest(model, x[correct], y[correct], ball, seed)
        found["known_correct"] = correct & ((said(model, there) == y) | ~ball.contains(x, there))
    return found


def strongest(model: nn.Module, x: Tensor, y: Tensor, ball: Ball, seed: int, steps: int = 50) -> Tensor:
    """Auto-PGD on cross-entropy from two starts, then towards the three likeliest wrong classes, on what stands."""
    apgd = find("evasion/apgd")
    parts = partial(apgd, steps=steps, restarts=2), partial(apgd, steps=steps, objective="dlr", targets=3)
    return worst_case(model, x, y, ball=ball, methods=parts, seed=seed)


def noise(x: Tensor, ball: Ball, seed: int) -> Tensor:
    """`x` moved in a direction drawn for each row as far as `ball` allows."""
    return ball.clip(x, x + 1e3 * Dice(x, seed).normal(*x.shape[1:]).to(x))


def said(model: nn.Module, x: Tensor) -> Tensor:
    """The labels that a classifier answers, `(B,)`."""
    with torch.no_grad():
        return torch.cat([model(part).argmax(1) for part in x.split(512)])


def reference(setting: Setting, norm: Literal["linf", "l2"] = "linf") -> Ball:
    """How far inputs are moved: as asked, else what the subject names first in `norm`."""
    named = (ball for ball in setting.subject.limits if ball.norm == norm)
    ball = setting.ball or next(named, Ball(norm, RADII[norm]))
    if not 0 < float(ball.radius) < math.inf:
        raise ValueError(f"expected a radius above 0 that ends, got {ball}: how far may an input be moved?")
    return ball


def words(setting: Setting, ball: Ball) -> dict[str, object]:
    """What was asked for, as a trial records it, with the limit that was taken."""
    asked = setting.asked("rows", "train_rows", "encoder_steps")
    return asked | {"pretraining": plain(setting.pretraining), "ball": str(ball)}


def _others(many: int, seed: int) -> Tensor:
    """For each of so many rows another one, drawn by `seed`; every row is drawn once."""
    order = torch.randperm(many, generator=torch.Generator().manual_seed(seed))
    back = torch.empty_like(order)
    back[order] = order.roll(1)
    return back


def _shown(model: nn.Module, x: Tensor, moved: Tensor) -> dict[str, Tensor]:
    rows = (said(model, x) != said(model, moved)).nonzero().squeeze(1)[:EXAMPLES]
    if x.ndim != 4 or len(rows) == 0:
        return {}
    return {"example_row": rows, "example_clean": x[rows], "example_moved": moved[rows]}


def _finished(blank: Trial, evidence: dict[str, Tensor], illegal: int) -> Trial:
    """The trial with a share for every row of truths in `evidence`, and what makes one doubt it."""
    found = {name: stats.share(e, name) for name, e in evidence.items() if e.dtype == torch.bool}
    evidence["shook"] = evidence["correct"].to(torch.int8) - evidence["noise_correct"].to(torch.int8)
    evidence["took"] = evidence["correct"].to(torch.int8) - evidence["robust"].to(torch.int8)
    found |= {name: stats.difference(evidence[name], name) for name in ("shook", "took")}
    took, shook = found["took"], found["shook"]
    robust, known = found["robust"].value, found["known_correct"].value
    says = f"Noise of the same size takes {shook.value:.1%} of the rows, the method {took.value:.1%}."
    checks = (
        Check(
            LEGAL, illegal == 0, f"{illegal} examples leave the limit or the range; they count as not moved.", illegal
        ),
        Check(NOISE, shook.value <= max(took.value, 0.0) / 2, says, shook.value),
        Check(
            REFERENCE,
            known <= robust + 0.02,
            f"An adversary who knows the task leaves {known:.1%} of the rows right, the method {robust:.1%}.",
            known - robust,
        ),
    )
    return replace(blank, status="ok", checks=checks, estimates=found, evidence=evidence)
