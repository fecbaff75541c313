"""Which doubts are raised about a trial, and whether it is believed.

The checks themselves are in `_doubt`, `_indicators` and `_binarization`. Those that must run the attack again do so for
methods that climb in steps; a verdict over many attacks (AutoAttack) is doubted by what its model and its result show.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from buckler.contract import apart
from buckler.evasion._attack import Attack
from buckler.evasion._binarization import binarization
from buckler.evasion._doubt import examine, gates, labels, random_noise
from buckler.evasion._indicators import indicators
from buckler.target import Oracle, frozen
from buckler.threat import Ball
from buckler.trial import Check, State

FEW = 16


def answers_at_random(target: nn.Module | Oracle, x: Tensor) -> bool:
    """Whether two answers to the same few rows differ by more than rounding."""
    x = x[:FEW]
    if isinstance(target, Oracle):
        return bool((target.labels(x) != target.labels(x)).any())
    with frozen(target), torch.no_grad():
        return apart(target(x), target(x)) > 1e-3


def claims(evidence: Mapping[str, Tensor]) -> tuple[Check, ...]:
    """What the attack returned, looked at: inputs that are none get no credit, and are told."""
    many = int(evidence["illegal"].sum())
    beyond = int((evidence["distance"].isfinite() & (evidence["distance"] > 0) & ~evidence["fooled"]).sum())
    says = (
        f"{many} rows came back as no legal input (not finite, or outside [0, 1]) and were not counted."
        if many
        else "Everything that the attack returned is a legal input."
    )
    if beyond:
        says += f" {beyond} rows were fooled beyond the limit only, and count as robust."
    return (Check("legal", many == 0, says, float(many)),)


def doubts(run: Attack, evidence: Mapping[str, Tensor]) -> tuple[Check, ...]:
    """All that is cheap enough to ask on the first rows that `run` attacked."""
    if run.sample is None:
        return ()
    x, y, found = run.sample
    source, settings = run.source, run.settings
    ball = _finite(settings.ball, evidence["distance"])
    standing = (labels(run.target, found) == y) | ~ball.contains(x, found)
    checks: tuple[Check, ...] = ()
    if isinstance(source, nn.Module):
        checks += examine(source, x, y, ball=ball, seed=settings.seed)
    checks += (random_noise(run.target, x, y, ball=ball, held=standing, seed=settings.seed),)
    few, goal = (x[:FEW], y[:FEW]), settings.goal
    if math.isinf(float(settings.ball.radius)):
        checks += (_limitless(evidence),) if goal is None else ()
        return checks
    if "steps" in run.described.knobs:
        checks += indicators(
            run.method, source, run.target, *few, ball=ball, found=found[:FEW], goal=goal, seed=settings.seed
        )
    if isinstance(source, nn.Module) and goal is None:
        target = run.target if run.through is not None else None
        checks += (binarization(run.method, source, *few, ball=ball, target=target, seed=settings.seed),)
    return tuple(check for check in checks if check.name != "legal")


def believed(
    checks: Sequence[Check],
    evidence: Mapping[str, Tensor],
    *,
    adaptive: bool = False,
    transferred: bool = False,
    limited: bool = True,
) -> tuple[State, str]:
    """The status of a trial and why: doubts matter where rows still stand, for it is robustness they put in doubt.

    A trial without a limit tells how far rows stand, so there they matter for every row that was right.
    """
    doubtful = [check for check in checks if gates(check, adaptive=adaptive, transferred=transferred)]
    standing = evidence["robust"] if limited else evidence["correct"]
    if not doubtful or not bool(standing.any()):
        return "ok", ""
    return "inconclusive", doubtful[0].says


def _limitless(evidence: Mapping[str, Tensor]) -> Check:
    """Whether an attack that may go as far as it takes left no more rows standing than guessing would."""
    left = float(evidence["robust"].double().sum() / evidence["correct"].sum().clamp_min(1))
    chance = 1 / max(2, int(evidence["label"].max()) + 1)
    says = f"Without a limit, {left:.0%} of rows still stand."
    return Check("unbounded", left <= chance, says if left <= chance else f"{says} More can be fooled than were.", left)


def _finite(ball: Ball, distance: Tensor) -> Ball:
    """The limit, or the median distance found where the attack had none."""
    if math.isfinite(float(ball.radius)):
        return ball
    found = distance[distance.isfinite() & (distance > 0)]
    return Ball(ball.norm, float(found.median()) if len(found) else 1.0)
