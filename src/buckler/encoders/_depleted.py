"""How much work a query can be made to take: of a dense encoder, by hardware that skips zeros, and where an encoder
leaves early or drops tokens.

An encoder of the subject's is served so for this. What is learnt above it stays as it is, so that leaving early shows
in accuracy too.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor, nn

from buckler import stats
from buckler.data import Rows, floats
from buckler.embedding import embedded, probe
from buckler.encoders._adaptive import Adaptive, adaptive
from buckler.encoders._early_exit import busy, products
from buckler.encoders._scene import refusal, scene
from buckler.encoders._setting import Setting
from buckler.encoders._token_pruning import TokenPruned
from buckler.evaluation import skipped
from buckler.threat import Ball, Threat
from buckler.trial import Check, Trial

ANY = Ball("linf", 1.0)
"""Whoever pays for nothing may send any image."""
TRIED = 64
"""Rows that a dense encoder's work is counted for one by one."""
HONEST = 0.99
"""The share of honest queries that a cut-off is to leave alone."""
NOISE = "it costs more than noise of the same size"


def sponged(setting: Setting) -> Trial:
    """What queries cost, honest, random and made to: shares of an encoder's multiplications."""
    ball = setting.ball or ANY
    blank = _blank(setting, ball, "queries that take the most work")
    if reason := refusal(setting, white=True):
        return skipped(blank, reason)
    seen = scene(setting)
    encoder, x = cast(nn.Module, seen.encoder), floats(seen.test[0]).to(setting.device)
    if x.ndim != 4 or not products(encoder, x):
        return skipped(blank, f"{setting.described.path} counts what convolutions and linear layers do with images")
    draw = torch.Generator(x.device).manual_seed(setting.seed)
    junk = torch.rand(x.shape, generator=draw, device=x.device)
    noise = ball.clip(x, x + (2 * junk - 1) * ball.radii(x).clamp_max(1.0))
    setting.told(0.3)
    soaked = _checked(_run(setting, encoder, x, {"ball": ball}), x, ball)
    evidence = {"dense": _dense(encoder, soaked[:TRIED]) / _dense(encoder, x[:TRIED])}
    evidence |= _four(lambda rows: busy(encoder, rows), "busy", x, noise, junk, soaked)
    limit = busy(encoder, floats(seen.spare[0]).to(x)).quantile(HONEST)
    evidence |= {f"{name}refused": evidence[f"{name}busy"] > limit.cpu() for name in ("", "sponge_")}
    setting.told(0.6)
    served = adaptive(encoder, seen.spare[0])
    which = "busy" if served is None else "pruned" if isinstance(served, TokenPruned) else "spent"
    if served is not None:
        soaked = _checked(_run(setting, cast(nn.Module, served), x, {"ball": ball}), x, ball)
        evidence |= _four(served.spent, which, x, noise, junk, soaked)
        evidence |= _guarded(served, seen.spare, (x, seen.test[1]), soaked, encoder)
    found = {
        name: stats.share(value, name)
        if value.dtype == torch.bool
        else stats.mean(value, name)
        if value.is_floating_point()
        else stats.difference(value, name)
        for name, value in evidence.items()
    }
    more = found[f"{which}_over_noise"]
    says = f"A sponge costs {more.value:.3f} more than noise of the same size, where the encoder alone costs 1."
    return replace(
        blank,
        status="ok",
        checks=(Check(NOISE, more.low > 0, says, more.value),),
        estimates=found,
        evidence=evidence,
    )


def flooded(setting: Setting) -> Trial:
    """How many honest queries are answered while others flood the service; see `query_flood`."""
    ball = setting.ball or ANY
    blank = _blank(setting, ball, "no answers for others")
    if reason := refusal(setting, white=True):
        return skipped(blank, reason)
    seen = scene(setting)
    encoder, x = cast(nn.Module, seen.encoder), floats(seen.test[0]).to(setting.device)
    if x.ndim != 4:
        return skipped(blank, f"{setting.described.path} is tried on images, and the test rows are none")
    served = cast(nn.Module, adaptive(encoder, seen.spare[0]) or encoder)
    readings = cast("dict[str, Tensor]", _run(setting, served, x, {"ball": ball}))
    for name, value in readings.items():
        if value.shape != (len(x),) or not bool(((value >= 0) & (value <= 1 + 1e-6)).all()):
            raise ValueError(f"expected a share for each of {len(x)} queries, got {name} of {tuple(value.shape)}")
    evidence = {name: value.clamp(0, 1) for name, value in readings.items()}
    evidence["refused"] = evidence["quiet"] - evidence["sponged"]
    found = {name: stats.mean(value, name) for name, value in evidence.items()}
    quiet = found["quiet"].value
    check = Check("honest queries are answered without a flood", quiet > 0.95, f"{quiet:.1%} are.", quiet)
    return replace(
        blank,
        status="ok" if check.passed else "inconclusive",
        reason="" if check.passed else "the service is too slow for its honest clients alone",
        checks=(check,),
        estimates=found,
        evidence=evidence,
    )


def _blank(setting: Setting, ball: Ball, wants: str) -> Trial:
    asked = setting.asked("rows", "train_rows", "encoder_steps") | {"ball": str(ball)}
    return setting.blank(Threat("weights", "input", str(ball), wants, setting.described.tags), asked)


def _run(setting: Setting, model: nn.Module, x: Tensor, more: dict[str, Any]) -> object:
    began = time.perf_counter()
    given = more | {"seed": setting.seed}
    made = setting.method(model, x, **{name: given[name] for name in setting.left_open(*given)})
    setting.meter.method_seconds += time.perf_counter() - began
    return made


def _checked(made: object, x: Tensor, ball: Ball) -> Tensor:
    """What a method made of `x`, with `x` itself in place of rows that break the limit."""
    moved = cast(Tensor, made).detach().to(x)
    if moved.shape != x.shape:
        raise ValueError(f"expected inputs {tuple(x.shape)}, got {tuple(moved.shape)}")
    return torch.where(ball.contains(x, moved)[:, None, None, None], moved, x)


def _dense(encoder: nn.Module, x: Tensor) -> Tensor:
    """The multiplications of each row, asked alone: `(B,)`."""
    return torch.tensor([products(encoder, row) for row in x.split(1)])


def _four(
    cost: Callable[[Tensor], Tensor], name: str, x: Tensor, noise: Tensor, junk: Tensor, soaked: Tensor
) -> dict[str, Tensor]:
    """The cost of honest queries, of those with noise, of random pixels and of sponges; the factor between the last and
    the first; and how much more than noise they cost."""
    with torch.no_grad():
        own, noisy, random, most = (cost(rows).cpu() for rows in (x, noise, junk, soaked))
    return {
        name: own,
        f"noise_{name}": noisy,
        f"junk_{name}": random,
        f"sponge_{name}": most,
        f"{name}_factor": _times(most, own),
        f"{name}_over_noise": most - noisy,
    }


def _times(most: Tensor, own: Tensor) -> Tensor:
    """Rows whose mean is the ratio of the means of `most` and `own` `(B,)`, and whose spread is that of both (the delta
    method)."""
    middle = own.mean()
    return most / middle - (own - middle) * most.mean() / middle**2


def _guarded(served: Adaptive, spare: Rows, test: Rows, soaked: Tensor, encoder: nn.Module) -> dict[str, Tensor]:
    """Under a cap, what an honest query can pay for in the mean: what sponges cost, and how often a probe above the
    encoder is right, of which `full_` is of the plain encoder and `exit_` without the cap."""
    x, y = test
    above = probe(embedded(encoder, spare[0]), spare[1], classes=int(torch.cat([spare[1], y]).max()) + 1)

    def right(model: nn.Module) -> Tensor:
        return above(embedded(model, x)).argmax(1) == y

    model = cast(nn.Module, served)
    found = {"full_correct": right(encoder), "exit_correct": right(model)}
    with torch.no_grad():
        own = served.spent(x).cpu()
    with served.capped(floats(spare[0]).to(x)):
        found["capped_correct"] = right(model)
        with torch.no_grad():
            found["capped_factor"] = _times(served.spent(soaked).cpu(), own)
    found["cap_cost"] = found["capped_correct"].int() - found["exit_correct"].int()
    found["exit_cost"] = found["exit_correct"].int() - found["full_correct"].int()
    return found
