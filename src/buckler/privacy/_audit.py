"""An audit of a training's privacy: what canaries show of it, beside what it promised."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, cast

import torch
from torch import nn

from buckler import stats
from buckler.data import Rows, drawn, raw
from buckler.evaluation import skipped
from buckler.imported import usable
from buckler.kinds import Audited, Protected
from buckler.method import Method, left_open, plain
from buckler.privacy._guards import apart, unknown_rows
from buckler.privacy._setting import Setting
from buckler.stats import Estimate
from buckler.threat import Threat
from buckler.trial import Check, Trial

DELTA = 1e-5
"""The delta that epsilon is of where nothing was promised."""
KEPT = "the promise could be refuted, and was not"


def audited(setting: Setting) -> Trial:
    """The defence that was asked for, else the plain loop, with canaries among its rows."""
    subject, described, defence = setting.subject, setting.described, setting.defence
    asked: dict[str, object] = {"train_rows": setting.train_rows}
    if defence is not None:
        asked["defence"] = plain(defence)
    within = f"{described.params.get('canaries', 'its')} canaries, of which it knows all but the coins"
    blank = setting.blank(Threat("scores", "training data", within, "which canaries were held", described.tags), asked)
    if subject.train is None or subject.net is None:
        return skipped(blank, f"{described.path} trains a network: give the subject its `train` and its `net`")
    net, given = subject.net, dict[str, Any]()
    given["net"] = lambda: usable(net(), "net").to(setting.device)
    given["seed"] = setting.seed
    public = None if defence is None or not left_open(defence, "public") else unknown_rows(subject)
    given["training"] = None if defence is None else _training(defence, public)
    began = time.perf_counter()
    data = raw(subject.train, drawn(subject.train, setting.train_rows, setting.seed))
    made = cast(Audited, setting.method(data, **{name: given[name] for name in setting.left_open(*given)}))
    setting.meter.method_seconds += time.perf_counter() - began
    if made.score.shape != made.held.shape or not bool(made.score.isfinite().all()):
        raise ValueError(f"{described.path}: expected a finite score for every canary, got {tuple(made.score.shape)}")
    promise = {"promised_epsilon": made.epsilon, "promised_delta": made.delta}
    delta = DELTA if made.delta is None else made.delta
    columns = made.score.cpu(), made.held.cpu(), torch.full(made.score.shape, delta)
    evidence = {"canaries": torch.stack([column.float() for column in columns], 1)}
    found = {
        "epsilon": stats.epsilon(evidence["canaries"], "canaries"),
        "reach": stats.reach(evidence["canaries"], "canaries"),
        "gaussian_epsilon": stats.gaussian_epsilon(evidence["canaries"], "canaries"),
        "auc": stats.area(evidence["canaries"], "canaries"),
    }
    checks, reason = list[Check](), ""
    if made.epsilon is not None:
        checks.append(_kept(found, made.epsilon, delta))
        reason = "" if found["reach"].value > made.epsilon else checks[0].says
    if public is not None:
        checks.append(apart(subject, public))
    return replace(
        blank,
        params={**blank.params, **{name: value for name, value in promise.items() if value is not None}},
        status="inconclusive" if reason else "ok",
        reason=reason,
        checks=tuple(checks),
        estimates=found,
        evidence=evidence,
    )


def _training(defence: Method, public: Rows | None) -> Callable[[Rows, Callable[[], nn.Module], int], Protected]:
    """The defence, as the audit trains with it."""

    def training(data: Rows, net: Callable[[], nn.Module], seed: int) -> Protected:
        given: dict[str, Any] = {"net": net, "seed": seed, "public": public}
        return cast(Protected, defence(data, **{name: given[name] for name in left_open(defence, *given)}))

    return training


def _kept(found: Mapping[str, Estimate], promised: float, delta: float) -> Check:
    bound, reach = found["epsilon"].low, found["reach"].value
    says = f"The bound is {bound:.2f}, and {promised:.3g} was promised at delta {delta:.2g}."
    if bound > promised:
        says += " The promise is broken: the training is not private as it says."
    elif not reach > promised:
        says += f" It could not be above {reach:.2f}: so few canaries cannot refute this promise, and decide nothing."
    return Check(KEPT, bound <= promised < reach, says, bound)
