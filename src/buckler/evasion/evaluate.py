"""Run any method of the area, distrust the answer, and return a Trial with per-row evidence.

What is done for an attack: the clean baseline on the same rows; the attack on a faster form of the model, then again in
full precision on the rows whose claim did not hold; the claim re-checked (limit, range, success on the real target);
the doubt checks. A trial whose doubts gate it is `inconclusive`, and nothing is credited with it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from buckler import stats
from buckler.catalog import find
from buckler.data import as_tensors, batches, count
from buckler.evaluation import running, spent
from buckler.evasion import _certify, _defences
from buckler.evasion._attack import VOTES, Attack, Settings, batch_size
from buckler.evasion._trust import answers_at_random, believed, claims, doubts
from buckler.method import Described, Method, describe
from buckler.subject import Subject
from buckler.target import Meter, Oracle, frozen
from buckler.threat import Ball, Threat
from buckler.trial import Cost, Trial, identity

POOL, LEAST = 2000, 50
"""How many rows a surrogate learns from at most, and at least."""


def evaluate(
    method: Method,
    subject: Subject,
    *,
    ball: Ball,
    rows: int = 1000,
    through: Method | nn.Module | None = None,
    goal: int | None = None,
    radii: Sequence[float] = (),
    attack: Method | None = None,
    epochs: float = 10,
    doubt: bool = True,
    seed: int = 0,
    tick: Callable[[float, int], None] | None = None,
) -> Trial:
    """Run `method` on the first `rows` test rows of `subject` and return what can be believed of it.

    `ball` is the limit (radius `inf` for minimum-norm attacks). `through` is a surrogate, or a method that makes one
    from the target's answers: the attack runs on it and success is judged on the target; a guarded model brings its
    own. `goal` asks for one target label. `radii` (ascending) asks for the smallest of these radii at which each row
    falls, found by bisection over per-row radii. `attack` is what a defence is judged with (AutoAttack if not given)
    and `epochs` how long a defence by training trains, on 10,000 training rows at most, drawn by `seed`.
    `tick(share, forwards)` hears of progress.

    A method that the subject does not admit (it needs weights, say, and there are only answers) gives a `skipped`
    trial with the reason.
    """
    described = describe(method)
    settings = Settings(ball, rows, goal, tuple(radii), epochs, doubt, seed, tick)
    blank = Trial(
        method=described.path,
        kind=described.kind,
        params={**described.params, **_asked(settings, through, attack, described.kind)},
        threat=_threat(described, subject, settings, through),
        subject=identity(subject.name, subject.model, batches(subject.test, 256, rows), subject.encoder),
        seed=seed,
        status="skipped",
        source=described.source,
    )
    reason = _refusal(described, subject, through, settings)
    if reason:
        return replace(blank, reason=reason)
    # a model may answer at random: its draws are the trial's own, the same in any process and after any other trial
    with running(subject, seed) as (device, meter, _):
        if described.kind == "evade":
            trial = _attacked(blank, method, described, subject, through, settings, meter)
        elif described.kind in ("certify", "probe"):
            trial = _certify.evaluate(blank, method, described, subject, settings, meter)
        else:
            against = attack if attack is not None else find("evasion/autoattack")
            trial = _defences.evaluate(blank, method, described, subject, against, settings, meter)
        return spent(trial, meter, device)


def _attacked(
    blank: Trial,
    method: Method,
    described: Described,
    subject: Subject,
    through: Method | nn.Module | None,
    settings: Settings,
    meter: Meter,
) -> Trial:
    target = subject.model
    x, _ = as_tensors(subject.test, 16)
    x = x.to(subject.device)
    surrogate, asked = _surrogate(through, subject, settings, meter)
    votes = VOTES if answers_at_random(target, x) else 1
    size = batch_size(x)
    parts = ((a.to(subject.device), b.to(subject.device)) for a, b in batches(subject.test, size, settings.rows))
    with frozen(target) if isinstance(target, nn.Module) else nullcontext():
        attack = Attack(method, described, target, settings, through=surrogate, votes=votes)
        outcome = attack.run(parts, meter)
        evidence = outcome.evidence()
        checks = claims(evidence)
        if settings.doubt:
            checks += doubts(attack, evidence)
    estimates = {"clean_accuracy": stats.share(evidence["correct"], "correct")}
    if math.isinf(float(settings.ball.radius)):
        estimates["distance"] = stats.median(evidence["distance"], "distance")
    else:
        estimates["robust_accuracy"] = stats.share(evidence["robust"], "robust")
    status, reason = believed(
        checks,
        evidence,
        adaptive=through is None and attack.through is not None,
        transferred=through is not None,
        limited=math.isfinite(float(settings.ball.radius)),
    )
    return replace(
        blank,
        status=status,
        reason=reason,
        checks=checks,
        estimates=estimates,
        evidence={name: stats.rows(tensor) for name, tensor in evidence.items()},
        cost=Cost(queries=outcome.queries + asked),
    )


def _surrogate(
    through: Method | nn.Module | None, subject: Subject, settings: Settings, meter: Meter
) -> tuple[nn.Module | None, int]:
    """The module that an attack goes through, as given or made from the target's answers, and how many it took."""
    if through is None or isinstance(through, nn.Module):
        return through, 0
    target = subject.model
    oracle = target.narrowed("labels") if isinstance(target, Oracle) else Oracle(target, "labels")
    more: dict[str, Any] = {"seed": settings.seed} if "seed" in describe(through).knobs else {}
    if not _has_net(through):
        more["net"] = subject.net
    made = through(oracle, _pool(subject, settings.rows).to(subject.device), **more)
    meter.watch(made)
    return made, oracle.asked


def _pool(subject: Subject, attacked: int) -> Tensor:
    """Inputs that a surrogate may learn from: training rows, else the test rows after those that are attacked."""
    if subject.train is not None:
        return as_tensors(subject.train, min(POOL, count(subject.train)))[0]
    return as_tensors(subject.test, range(attacked, min(count(subject.test), attacked + POOL)))[0]


def _has_net(through: Method) -> bool:
    return "net" in describe(through).params


def _refusal(described: Described, subject: Subject, through: Method | nn.Module | None, settings: Settings) -> str:
    """Why the subject does not admit the method, or nothing."""
    if through is not None and not isinstance(through, nn.Module):
        if subject.net is None and not _has_net(through):
            return f"{describe(through).path} trains a network: give the subject its `net`"
        if subject.train is None and count(subject.test) < settings.rows + LEAST:
            return (
                "a surrogate learns from other rows than those attacked: "
                f"give the subject `train`, or {LEAST} test rows more"
            )
    if not isinstance(subject.model, Oracle):
        return ""
    if described.kind != "evade":
        return f"{described.path} needs the model itself, and only its answers can be had"
    if described.holds == "model":
        return "" if through is not None else f"{described.path} needs the weights, and only answers can be had"
    if described.holds == "scores" and subject.model.reveals == "labels":
        return f"{described.path} needs scores, and the target reveals labels only"
    return ""


def _threat(described: Described, subject: Subject, settings: Settings, through: Method | nn.Module | None) -> Threat:
    sees = {"model": "weights"}.get(described.holds, described.holds)
    if through is not None:
        sees = "labels, and a surrogate trained on them" if not isinstance(through, nn.Module) else "a surrogate"
    within = str(settings.ball)
    if isinstance(described.params.get("queries"), int):
        within += f", {described.params['queries']} queries per row"
    wants = "any wrong label" if settings.goal is None else f"label {settings.goal}"
    tags = described.tags
    if through is not None and described.kind == "evade":
        tags = tuple(
            tag.replace("AML.T0043.000", "AML.T0043.002").replace("NISTAML.022", "NISTAML.025") for tag in tags
        )
    return Threat(sees, "input", within, wants, tags)


def _asked(
    settings: Settings, through: Method | nn.Module | None, attack: Method | None, kind: str
) -> dict[str, object]:
    """What this evaluation was asked for, beside the method's own parameters, as the record holds it."""
    asked: dict[str, object] = {"ball": str(settings.ball), "rows": settings.rows}
    if not settings.doubt and kind in ("evade", "loss", "guard"):
        asked["doubt"] = False
    if through is not None:
        asked["through"] = type(through).__name__ if isinstance(through, nn.Module) else describe(through).path
    if settings.goal is not None:
        asked["goal"] = settings.goal
    if settings.radii:
        asked["radii"] = list(settings.radii)
    if kind in ("loss", "guard"):
        asked["attack"] = "evasion/autoattack" if attack is None else describe(attack).path
    if kind == "loss":
        asked["epochs"] = settings.epochs
    return asked
