"""Pre-training against evasion: what it buys a linear probe, beside plain pre-training on the same rows."""

from __future__ import annotations

import time
from dataclasses import replace
from functools import partial
from typing import cast

import torch
from torch import Tensor, nn

from buckler import stats
from buckler.catalog import find
from buckler.combine import worst_case
from buckler.data import Rows, floats
from buckler.embedding import probed
from buckler.encoders._evaded import against, reference, said, strongest, words
from buckler.encoders._scene import pretrained, refusal, scene, tasks
from buckler.encoders._setting import Setting
from buckler.encoders.feature_pgd import feature_pgd
from buckler.evaluation import skipped
from buckler.threat import Ball, Threat
from buckler.trial import Check, Trial

FAR, LEFT, FEW = 4, 0.1, 100
QUERIES, MORE = 300, 0.05
"""How often a search without gradients may ask of a row, and the share of rows that it may turn where they did not."""
MASKED, BLIND = "larger changes fool it", "a search without gradients finds no more"


def hardened(setting: Setting) -> Trial:
    """Encoders that the method, and the pre-training that was asked for, make of the same rows, from the same start and
    in as many steps; a linear probe above each, which is then attacked."""
    described, left_open = setting.described, setting.left_open("radius")
    ball = reference(setting) if left_open else Ball("linf", cast(float, described.params["radius"]))
    threat = Threat("weights", "input", str(ball), "any wrong label", described.tags)
    blank = setting.blank(threat, words(setting, ball))
    setting = replace(setting, subject=replace(setting.subject, encoder=None))
    if reason := refusal(setting):
        return skipped(blank, reason)
    seen = scene(setting)
    setting.told(0.2)
    began = time.perf_counter()
    method = partial(setting.method, radius=float(ball.radius)) if left_open else setting.method
    own = pretrained(setting, cast(Rows, seen.learnt), method=method)
    setting.meter.method_seconds += time.perf_counter() - began
    setting.told(0.7)
    task = tasks(setting, seen)[0]
    x, y = floats(task.test[0]).to(setting.device), task.test[1].to(setting.device)
    evidence = dict[str, Tensor]()
    far, turned = 0.0, 0.0
    for name, encoder in (("", own), ("control_", cast(nn.Module, seen.encoder))):
        setting.meter.watch(encoder)
        model = probed(encoder, task.train, classes=task.classes, seed=setting.seed)
        moved = feature_pgd(encoder, x, ball=ball, pool=seen.spare[0], seed=setting.seed)
        found = against(model, x, y, moved, ball, setting.seed)
        found["known_correct"] &= found["robust"]  # whoever knows the task may use what does not need it
        evidence |= {f"{name}{key}": value for key, value in found.items()}
        if not name and bool(found["correct"].any()):
            rows = found["correct"].nonzero().squeeze(1)[:FEW]
            wide = Ball(ball.norm, FAR * float(ball.radius))
            there = strongest(model, x[rows], y[rows], wide, setting.seed)
            far = float((said(model, there) == y[rows]).double().mean())
            turned = _blindly(model, x, y, found["known_correct"].nonzero().squeeze(1)[:FEW], ball, setting.seed)
    estimates = {name: stats.share(value, name) for name, value in evidence.items()}
    for name, of in (("gained", "known_correct"), ("kept", "correct")):
        evidence[name] = evidence[of].to(torch.int8) - evidence[f"control_{of}"].to(torch.int8)
        estimates[name] = stats.difference(evidence[name], name)
    says = f"Changes {FAR} times as large leave {far:.1%} of at most {FEW} rows right: "
    says += "gradients lead to them." if far <= LEFT else "what looks robust may be gradients that lead nowhere."
    more = f"Square turns {turned:.1%} of at most {FEW} rows that gradients did not, in {QUERIES} queries each."
    checks = Check(MASKED, far <= LEFT, says, far), Check(BLIND, turned <= MORE, more, turned)
    doubts = " ".join(check.says for check in checks if not check.passed)
    return replace(
        blank,
        status="inconclusive" if doubts else "ok",
        reason=doubts,
        checks=checks,
        estimates=estimates,
        evidence=evidence,
    )


def _blindly(model: nn.Module, x: Tensor, y: Tensor, rows: Tensor, ball: Ball, seed: int) -> float:
    """The share of `rows`, which gradients did not turn, that a search by answers alone does."""
    if len(rows) == 0:
        return 0.0
    square = (partial(find("evasion/square"), queries=QUERIES),)
    there = worst_case(model, x[rows], y[rows], ball=ball, methods=square, seed=seed)
    return float((said(model, there) != y[rows]).double().mean())
