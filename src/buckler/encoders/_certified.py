"""Certificates for what is learnt above an encoder, tested before they are believed: no attack turns what is sure."""

from __future__ import annotations

import time
from dataclasses import replace
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn

from buckler import stats
from buckler.catalog import find
from buckler.data import floats
from buckler.embedding import probed
from buckler.encoders._evaded import reference, said, words
from buckler.encoders._scene import refusal, scene, tasks
from buckler.encoders._setting import Setting
from buckler.encoders._smooth import Noisy, noisy_probe
from buckler.evaluation import skipped
from buckler.kinds import ABSTAIN, Certificate
from buckler.threat import Ball, Threat
from buckler.trial import Check, Trial

TESTED = 20
"""How many certified rows are attacked just inside their radius."""
HOLDS = "certificate holds"


def certified(setting: Setting) -> Trial:
    """What share of the rows is proven to be answered rightly within the limit, and whether an attack inside of it, and
    just inside each row's own radius, leaves them so."""
    described, ball = setting.described, reference(setting, "l2")
    threat = Threat("weights", "input", str(ball), "any wrong label", described.tags)
    blank = setting.blank(threat, words(setting, ball))
    if reason := refusal(setting, white=True):
        return skipped(blank, reason)
    seen = scene(setting)
    encoder = cast(nn.Module, seen.encoder)
    setting.meter.watch(encoder)
    task = tasks(setting, seen)[0]
    x, y = floats(task.test[0]).to(setting.device), task.test[1].to(setting.device)
    given: dict[str, Any] = {"data": task.train, "seed": setting.seed}
    prove = partial(setting.method, **{name: given[name] for name in setting.left_open(*given)})
    began = time.perf_counter()
    proof: Certificate = prove(encoder, x)
    setting.meter.method_seconds += time.perf_counter() - began
    setting.told(0.5)
    if proof.norm != ball.norm:
        raise ValueError(f"expected a limit in {proof.norm}, in which {described.path} proves, got {ball}")
    sigma, copies = cast(float, described.params["sigma"]), cast(int, described.params["copies"])
    classes = int(task.train[1].max()) + 1  # as the method counts them: the voter must be the very same
    voter = noisy_probe(encoder, task.train, classes=classes, sigma=sigma, copies=copies, seed=setting.seed)
    right = proof.label == y
    sure = right & (proof.radius >= float(ball.radius))
    stands, fell = right.clone(), 0
    for rows, radius in (
        (right.nonzero().squeeze(1), torch.full_like(proof.radius, float(ball.radius))),
        (right.nonzero().squeeze(1)[:TESTED], 0.98 * proof.radius),
    ):
        if len(rows) == 0:
            continue
        moved = _attacked(Noisy(voter, sigma), x[rows], y[rows], Ball("l2", radius[rows].float()), setting.seed)
        again = prove(encoder, moved).label
        turned = (again != y[rows]) & (again != ABSTAIN)
        fell += int((turned & (proof.radius[rows] >= radius[rows])).sum())
        stands[rows[turned & (radius[rows] <= float(ball.radius))]] = False
    plain = probed(encoder, task.train, classes=task.classes, seed=setting.seed)
    evidence = {"correct": said(plain, x) == y, "smoothed_correct": right, "certified": sure, "stands": stands}
    says = f"{fell} rows were turned by an attack inside the radius that is proven for them."
    return replace(
        blank,
        status="ok" if fell == 0 else "failed",
        reason="" if fell == 0 else says,
        checks=(Check(HOLDS, fell == 0, says, float(fell)),),
        estimates={name: stats.share(value, name) for name, value in evidence.items()},
        evidence=evidence | {"radius": proof.radius},
    )


def _attacked(model: nn.Module, x: Tensor, y: Tensor, ball: Ball, seed: int) -> Tensor:
    return find("evasion/apgd")(model, x, y, ball=ball, steps=15, draws=4, stop=False, seed=seed)
