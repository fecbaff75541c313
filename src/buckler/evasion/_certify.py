"""Certificates and probes: what is proven of each row, and what is measured of it.

A certificate is tested before it is believed: attacks inside certified radii must fail. If one does not, the trial has
failed, because either the proof or the attack's check is wrong.
"""

from __future__ import annotations

import inspect
import math
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, nn

from buckler import stats
from buckler.data import batches
from buckler.evasion._attack import Settings, batch_size
from buckler.evasion.pgd import pgd
from buckler.kinds import ABSTAIN
from buckler.method import Described, Method
from buckler.subject import Subject
from buckler.target import Meter, frozen
from buckler.threat import Ball
from buckler.trial import Check, Trial

TESTED = 32
"""How many certified rows are attacked inside their radius."""


def evaluate(
    blank: Trial, method: Method, described: Described, subject: Subject, settings: Settings, meter: Meter
) -> Trial:
    """Run a certify or a probe method over the rows; see `evasion.evaluate.evaluate`."""
    model = subject.model
    if not isinstance(model, nn.Module):
        raise TypeError("expected a model, got an oracle")
    more: dict[str, object] = {"seed": settings.seed} if "seed" in described.knobs else {}
    if "ball" in described.knobs:
        more["ball"] = settings.ball
    if "norm" in described.knobs:
        more["norm"] = settings.ball.norm
    configured = partial(method, **more)
    parts: list[dict[str, Tensor]] = []
    broken = tested = done = 0
    with frozen(model):
        first, _ = next(iter(batches(subject.test, 1, 1)))
        device = next((p.device for p in model.parameters()), torch.device("cpu"))
        for x, y in batches(subject.test, min(64, batch_size(first)), settings.rows):
            x, y = x.to(device), y.to(device)
            with torch.no_grad():
                right = model(x).argmax(1) == y
            if described.kind == "certify":
                label, radius, norm = configured(model, x)
                part = {"certified_label": label, "certified_radius": radius, "correct": right, "label": y}
                if tested < TESTED:
                    attacked, fell = _attack_inside(
                        configured, model, x, label, radius, norm, TESTED - tested, settings
                    )
                    tested, broken = tested + attacked, broken + fell
                of = "the model itself" if "ball" in described.knobs else "a smoothed copy of the model"
                blank = replace(blank, params={**blank.params, "norm": norm, "certifies": of})
            else:
                readings = configured(model, x, y)
                part = {**readings, "correct": right, "label": y}
            parts.append({name: stats.rows(tensor) for name, tensor in part.items()})
            done += len(x)
            if settings.tick is not None:
                settings.tick(min(1.0, done / settings.rows), meter.forwards)
    evidence = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    estimates = {"clean_accuracy": stats.share(evidence["correct"], "correct")}
    if described.kind == "probe":
        names = [name for name in evidence if name not in ("correct", "label")]
        estimates = {name: stats.median(evidence[name], name) for name in names}
        return replace(blank, status="ok", estimates=estimates, evidence=evidence)
    held = (evidence["certified_label"] == evidence["label"]) & (evidence["certified_label"] != ABSTAIN)
    limit = float(settings.ball.radius)
    same_norm = settings.ball.norm == blank.params["norm"]
    evidence["certified_right"] = held
    estimates["certified_label_right"] = stats.share(held, "certified_right")
    if same_norm and math.isfinite(limit):
        evidence["certified"] = held & (evidence["certified_radius"] >= limit * (1 - 1e-6))
        estimates["certified_accuracy"] = stats.share(evidence["certified"], "certified")
    says = f"{broken} of {tested} certified rows were attacked successfully inside their certified radius"
    check = Check("certificate holds", broken == 0, says, float(broken))
    return replace(
        blank,
        status="ok" if broken == 0 else "failed",
        reason="" if broken == 0 else says,
        checks=(check,),
        estimates=estimates,
        evidence=evidence,
    )


def _attack_inside(
    certify: Method,
    model: nn.Module,
    x: Tensor,
    label: Tensor,
    radius: Tensor,
    norm: str,
    most: int,
    settings: Settings,
) -> tuple[int, int]:
    """Attack up to `most` certified rows just inside their radius: how many were tried, how many certificates broke."""
    rows = ((label != ABSTAIN) & (radius > 0)).nonzero().squeeze(1)[:most]
    if len(rows) == 0:
        return 0, 0
    ball = Ball(norm, radius[rows].float() * 0.98)  # pyright: ignore[reportArgumentType]
    moved = pgd(model, x[rows], label[rows], ball=ball, steps=20, stop=False, seed=settings.seed)
    again = certify(model, moved).label
    changed = (again != label[rows]) & (again != ABSTAIN)
    if "ball" in inspect.signature(certify).parameters:  # a certificate of the model itself, not of a smoothed one
        with torch.no_grad():
            changed = changed | (model(moved).argmax(1) != label[rows])
    return len(rows), int((changed & ball.contains(x[rows], moved)).sum())
