"""Defences, attacked adaptively, beside a control.

A defence by training is a fresh network trained with the method's loss; its control is the same network trained the
same way with cross-entropy. A guard stands before the subject's own model, which is its control. Both sides meet the
same attack on the same rows, and a guard is attacked through the surrogate it declares. What a defence costs on clean
rows is reported beside what it gains.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, nn

from buckler import stats
from buckler.data import as_tensors, batches
from buckler.evasion._attack import VOTES, Attack, Settings, batch_size
from buckler.evasion._trust import answers_at_random, believed, claims, doubts
from buckler.method import Described, Method, describe
from buckler.subject import Subject
from buckler.target import Meter, frozen
from buckler.train import fit
from buckler.trial import Check, Trial


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
        sides = _trained(method, described, subject.net, subject, settings, device)
    else:
        return replace(blank, reason=f"{described.path} is no attack and no defence: use it through another method")
    results: list[dict[str, Tensor]] = []
    checks: tuple[Check, ...] = ()
    for index, side in enumerate(sides):
        meter.watch(side)
        part = replace(settings, tick=_shared(settings.tick, index, described.kind))
        evidence, found = _attacked(side, attack, subject, part, meter, device, doubt=index == 1)
        results.append(evidence)
        checks = found
    control, defended = results
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
    subject: Subject,
    settings: Settings,
    device: torch.device,
) -> tuple[nn.Module, nn.Module]:
    """The control and the defended network: one initialisation, one loop, two losses."""
    if subject.train is None:
        raise TypeError("expected training data")
    with torch.random.fork_rng():
        torch.manual_seed(settings.seed)
        first = net()
    second = copy.deepcopy(first)
    x, y = as_tensors(subject.train)
    loss = partial(method, ball=settings.ball) if "ball" in described.knobs else method

    def tick(done: float, _loss: float) -> None:
        if settings.tick is not None:
            settings.tick(done / 2, 0)

    control = fit(first, (x, y), epochs=settings.epochs, seed=settings.seed, device=device)
    defended = fit(second, (x, y), loss=loss, epochs=settings.epochs, seed=settings.seed, device=device, tick=tick)
    return control, defended


def _attacked(
    side: nn.Module,
    attack: Method,
    subject: Subject,
    settings: Settings,
    meter: Meter,
    device: torch.device,
    *,
    doubt: bool,
) -> tuple[dict[str, Tensor], tuple[Check, ...]]:
    x, _ = as_tensors(subject.test, 16)
    x = x.to(device)
    described = describe(attack)
    votes = VOTES if answers_at_random(side, x) else 1
    parts = ((a.to(device), b.to(device)) for a, b in batches(subject.test, batch_size(x), settings.rows))
    with frozen(side):
        run = Attack(attack, described, side, settings, votes=votes)
        evidence = run.run(parts, meter).evidence()
        checks = claims(evidence)
        if doubt and settings.doubt:
            checks += doubts(run, evidence)
    return {name: stats.rows(tensor) for name, tensor in evidence.items()}, checks


def _shared(tick: Callable[[float, int], None] | None, index: int, kind: str) -> Callable[[float, int], None] | None:
    """Progress of one of two attacked sides, after training where there was any."""
    if tick is None:
        return None
    start = 0.5 if kind == "loss" else 0.0
    return lambda share, forwards: tick(start + (1 - start) * (index + share) / 2, forwards)
