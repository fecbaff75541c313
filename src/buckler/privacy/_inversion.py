"""Classes drawn out of a model, measured: does a model that learnt from other rows recognise them.

The control is a network of the same kind that learnt nothing: what is recognised of it is chance, or the method's own
prior. How like the pictures are to what was learnt from is measured against the mean image of the training rows of a
class.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from typing import cast

import torch
from torch import Tensor, nn

from buckler import stats
from buckler.data import as_tensors, count, drawn
from buckler.evaluation import skipped
from buckler.kinds import Reconstructed
from buckler.pictures import apart, psnr
from buckler.privacy._game import training_of
from buckler.privacy._pictures import APART, onlooker
from buckler.privacy._setting import Setting
from buckler.threat import Threat
from buckler.train import started
from buckler.trial import Check, Trial

MOST = 100
"""The most classes that are drawn."""
CONTROL = "of a network that learnt nothing no more classes are recognised than by chance"


def inverted(setting: Setting) -> Trial:
    """Every class of the subject's own model, and of the control."""
    subject, described = setting.subject, setting.described
    asked = setting.asked("train_rows", "training_epochs")
    blank = setting.blank(Threat("weights", "nothing", "no query", "what classes look like", described.tags), asked)
    if not isinstance(subject.model, nn.Module):
        return skipped(blank, f"{described.path} needs the model itself, and only its answers can be had")
    if subject.train is None or training_of(subject, setting.training_epochs) is None:
        return skipped(
            blank,
            f"{described.path} is measured against the training rows, by another model: give the subject its `train`, "
            "and its `recipe` or its `net`",
        )
    x, y = as_tensors(subject.train, drawn(subject.train, setting.train_rows, setting.seed))
    half = count(subject.test) // 2
    public, other = as_tensors(subject.test, range(half)), as_tensors(subject.test, range(half, count(subject.test)))
    onlooking = cast(Callable[[Tensor], Tensor], onlooker(setting, other))
    known = y.unique()[:MOST]
    means = torch.stack([x[y == label].mean(0) for label in known])
    evidence: dict[str, Tensor] = {"label": known, "mean": means}
    worlds = {"": subject.model}
    if subject.net is not None:
        worlds["control_"] = started(subject.net, setting.seed + 2 * APART).to(setting.device)
        setting.meter.watch(worlds["control_"])
    for turn, (name, model) in enumerate(worlds.items()):
        pictures = _drawn(setting, model, known, tuple(x.shape[1:]), public)
        said = onlooking(pictures).cpu()
        evidence |= {
            f"{name}picture": pictures,
            f"{name}recognised": said == known,
            f"{name}nearest": apart(pictures, means).argmin(1) == torch.arange(len(known)),
            f"{name}psnr": psnr(pictures, means),
        }
        setting.told((turn + 1) / len(worlds))
    evidence["prior_psnr"] = psnr(public[0].mean(0).expand_as(means), means)
    kinds = {"recognised": stats.share, "nearest": stats.share, "psnr": stats.median}
    found = {
        f"{name}{key}": kind(evidence[f"{name}{key}"], f"{name}{key}") for name in worlds for key, kind in kinds.items()
    }
    found["prior_psnr"] = stats.median(evidence["prior_psnr"], "prior_psnr")
    check = Check(CONTROL, False, "No control was drawn: give the subject its `net`.")
    if "control_" in worlds:
        evidence["gain"] = evidence["recognised"].to(torch.int8) - evidence["control_recognised"].to(torch.int8)
        found["gain"] = stats.difference(evidence["gain"], "gain")
        control = stats.share(evidence["control_recognised"], "control_recognised", 0.999)
        says = f"{int(evidence['control_recognised'].sum())} of {len(known)} classes of the control are recognised."
        check = Check(CONTROL, control.low <= 1 / len(known), says, control.value)
    bad = "" if check.passed or "control_" not in worlds else f"{check.says} The method brings its pictures with it."
    return replace(
        blank, status="inconclusive" if bad else "ok", reason=bad, checks=(check,), estimates=found, evidence=evidence
    )


def _drawn(
    setting: Setting, model: nn.Module, known: Tensor, shape: tuple[int, ...], public: tuple[Tensor, Tensor]
) -> Tensor:
    """A picture of every class, on the CPU. A `ValueError` for pictures that are none."""
    given: dict[str, object] = {"shape": shape, "seed": setting.seed, "public": public}
    given = {name: given[name] for name in setting.left_open(*given)}
    began = time.perf_counter()
    made = cast(Reconstructed, setting.method(model, known.to(setting.device), **given)).x.detach().cpu()
    setting.meter.method_seconds += time.perf_counter() - began
    if made.shape != (len(known), *shape) or not bool(((made >= 0) & (made <= 1)).all()):
        raise ValueError(f"{setting.described.path}: expected {len(known)} inputs {shape} in [0, 1], got {made.shape}")
    return made
