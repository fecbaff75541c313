"""Defences, attacked adaptively, beside a control.

A defence by training is a fresh network trained with the method's loss; its control is the same network trained the
same way with cross-entropy. A guard stands before the subject's own model, which is its control. Both sides meet the
same attack on the same rows, a guard is attacked through the surrogate it declares, and what fooled the control is
tried on the defended model too. What a defence costs on clean rows is reported beside what it gains.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, nn

from buckler import stats
from buckler.data import Rows, as_tensors, batches, drawn, raw
from buckler.evasion._attack import VOTES, Attack, Outcome, Settings, batch_size
from buckler.evasion._doubt import cross_check
from buckler.evasion._search import Objective
from buckler.evasion._trust import answers_at_random, believed, claims, doubts
from buckler.evasion.apgd import apgd
from buckler.method import Described, Method, describe
from buckler.subject import Subject
from buckler.target import Meter, frozen
from buckler.train import fit
from buckler.trial import Check, Trial

LEARNT = 10_000
"""Training rows that a defence by training and its control learn from at most, drawn by the seed."""
CLIMBED: tuple[Objective, ...] = ("ce", "margin")


def evaluate(
    blank: Trial,
    method: Method,
    described: Described,
    subject: Subject,
    attack: Method,
    settings: Settings,
    meter: Meter,
) -> Trial:
    """Compare a defence with its control under `attack`; see `evasion.evaluate.evaluate`."""
    model = subject.model
    if not isinstance(model, nn.Module):
        raise TypeError("expected a model, got an oracle")
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    if described.kind == "guard":
        sides = (model, method(model))
    elif described.kind == "loss":
        if subject.net is None or subject.train is None:
            missing = "net" if subject.net is None else "train"
            return replace(blank, reason=f"{described.path} trains a network: give the subject its `{missing}`")
        lessons = raw(subject.train, drawn(subject.train, LEARNT, settings.seed))
        blank = replace(blank, params={**blank.params, "train_rows": len(lessons[1])})
        sides = _trained(method, described, subject.net, lessons, settings, device)
    else:
        return replace(blank, reason=f"{described.path} is no attack and no defence: use it through another method")
    for side in sides:
        meter.watch(side)
    part = replace(settings, tick=_after_training(settings.tick, described.kind))
    control, defended, checks = _attacked(sides, attack, subject, part, meter, device)
    evidence = {
        **{name: tensor for name, tensor in defended.items()},
        "control_correct": control["correct"],
        "control_robust": control["robust"],
        "control_distance": control["distance"],
        "gained": defended["robust"].to(torch.int8) - control["robust"].to(torch.int8),
        "clean_change": defended["correct"].to(torch.int8) - control["correct"].to(torch.int8),
    }
    status, reason = believed(checks, evidence, adaptive=described.kind == "guard")
    return replace(
        blank,
        status=status,
        reason=reason,
        checks=checks,
        estimates={
            "clean_accuracy": stats.share(evidence["correct"], "correct"),
            "robust_accuracy": stats.share(evidence["robust"], "robust"),
            "control_clean_accuracy": stats.share(evidence["control_correct"], "control_correct"),
            "control_robust_accuracy": stats.share(evidence["control_robust"], "control_robust"),
            "robustness_gained": stats.difference(evidence["gained"], "gained"),
            "clean_accuracy_change": stats.difference(evidence["clean_change"], "clean_change"),
        },
        evidence=evidence,
    )


def _trained(
    method: Method,
    described: Described,
    net: Callable[[], nn.Module],
    lessons: Rows,
    settings: Settings,
    device: torch.device,
) -> tuple[nn.Module, nn.Module]:
    """The control and the defended network: one initialisation, one loop, two losses."""
    with torch.random.fork_rng():
        torch.manual_seed(settings.seed)
        first = net().to(device)
    second = copy.deepcopy(first)
    loss = partial(method, ball=settings.ball) if "ball" in described.knobs else method

    def tick(done: float, _loss: float) -> None:
        if settings.tick is not None:
            settings.tick(done / 2, 0)

    control = fit(first, lessons, epochs=settings.epochs, seed=settings.seed)
    defended = fit(second, lessons, loss=loss, epochs=settings.epochs, seed=settings.seed, tick=tick)
    return control, defended


def _attacked(
    sides: tuple[nn.Module, nn.Module],
    attack: Method,
    subject: Subject,
    settings: Settings,
    meter: Meter,
    device: torch.device,
) -> tuple[dict[str, Tensor], dict[str, Tensor], tuple[Check, ...]]:
    """Attack the control and the defended model batch by batch: evidence of both, and the doubts about the latter.

    What fooled the control is tried on the defended model too. An attack that stops where a surrogate's answer turns
    may stop short of where the guard's does, so APGD then goes on to the highest loss as well.
    """
    x, _ = as_tensors(subject.test, 16)
    x = x.to(device)
    with frozen(sides[0]), frozen(sides[1]):
        runs = [_run(side, attack, replace(settings, tick=None), x) for side in sides]
        runs[1].settings = settings
        further: list[Attack] = []
        blunt = runs[1].through is not None and "stop" not in runs[1].described.knobs
        if blunt and settings.ball.norm != "l0" and math.isfinite(float(settings.ball.radius)):
            more = replace(settings, tick=None, radii=())
            further = [_run(sides[1], partial(apgd, objective=loss, stop=False), more, x) for loss in CLIMBED]
        control, defended = Outcome(), Outcome()
        for a, b in batches(subject.test, batch_size(x), settings.rows):
            clean, y = a.to(device), b.to(device)
            tried = [(run.step(Outcome(), clean, y, meter), False) for run in further]
            tried.append((runs[0].step(control, clean, y, meter), True))
            runs[1].step(defended, clean, y, meter, tried)
        evidence = defended.evidence()
        checks = claims(evidence)
        if settings.doubt:
            checks += (*doubts(runs[1], evidence), _transferred(evidence))
    first, second = ({k: stats.rows(v) for k, v in e.items()} for e in (control.evidence(), evidence))
    return first, second, checks


def _run(side: nn.Module, attack: Method, settings: Settings, x: Tensor) -> Attack:
    return Attack(attack, describe(attack), side, settings, votes=VOTES if answers_at_random(side, x) else 1)


def _transferred(evidence: Mapping[str, Tensor]) -> Check:
    """Whether examples made for the control fooled rows that the attack on the defended model did not."""
    borrowed = evidence["borrowed"]
    check = cross_check(evidence["fooled"] & ~borrowed, borrowed)
    says = f"Examples made for the undefended model fooled {check.value:.1%} of rows that the attack did not."
    return check if check.passed else replace(check, says=f"{says} It is too weak, or gradients are masked.")


def _after_training(tick: Callable[[float, int], None] | None, kind: str) -> Callable[[float, int], None] | None:
    """Progress of the attack, after training where there was any."""
    if tick is None:
        return None
    start = 0.5 if kind == "loss" else 0.0
    return lambda share, forwards: tick(start + (1 - start) * share, forwards)
