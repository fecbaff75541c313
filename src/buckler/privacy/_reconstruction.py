"""Rows rebuilt from what is revealed of them, measured against the rows, and against what a prior alone would give.

What a client sends is made here, of rows that the method does not see: with the subject's weights, with weights that
nobody has trained, and, where the method can be told of it (`through`), after the usual defences. A row counts as
rebuilt if what came out is nearer to it than to every other training row. The control is the mean image of the other
rows of the same class: a picture that looks right because it looks like its class reveals nobody.
"""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import cast

import torch
from torch import Tensor, nn

from buckler import stats
from buckler.data import Data, as_tensors, drawn
from buckler.evaluation import skipped
from buckler.kinds import Reconstructed
from buckler.pictures import identified, matched, psnr, ssim
from buckler.privacy._gradients import Gradients, Through, gradients, size
from buckler.privacy._inversion import inverted
from buckler.privacy._pictures import onlooker
from buckler.privacy._setting import Setting
from buckler.stats import Estimate
from buckler.target import frozen
from buckler.threat import Threat
from buckler.train import started
from buckler.trial import Check, Trial

MOST = 16
"""The most rows that are rebuilt: each takes hundreds of gradients."""
SHOWN = 8
LEFT = 0.1
"""The share of a pruned update that is sent, the largest of it."""
NOISE = 0.01
"""The standard deviation of noise on an update, as a share of the update's length: its noise multiplier for DP-SGD."""
CONTROL = "the mean image of the class is no nearer to its rows than to others"


@dataclass(frozen=True)
class Defence:
    """What a client does to its update, and what the method may be told of it when the update is seen."""

    apply: Callable[[Gradients, torch.Generator], Gradients]
    through: Callable[[Gradients], Through | None]


def rebuilt(setting: Setting) -> Trial:
    """What the method rebuilds of what it asks for: `classes` of a model, or the rows of an `update`."""
    asks = list(inspect.signature(setting.method).parameters)[1]
    return inverted(setting) if asks == "classes" else _from_updates(setting)


def _from_updates(setting: Setting) -> Trial:
    described, subject = setting.described, setting.subject
    batch = int(str(described.params.get("batch", 1)))
    many = min(setting.rows, MOST)
    asked: dict[str, object] = {
        "rows": many,
        "train_rows": setting.train_rows,
        "training_epochs": setting.training_epochs,
    }
    within = f"one update of {batch} {'row' if batch == 1 else 'rows'}"
    blank = setting.blank(
        Threat("weights and updates", "nothing", within, "the rows of a client", described.tags), asked
    )
    if not isinstance(subject.model, nn.Module):
        return skipped(blank, f"{described.path} needs the model itself, and only its answers can be had")
    data: Data = subject.test if subject.train is None else subject.train
    pool = drawn(data, setting.train_rows, setting.seed)
    x, y = (tensor.to(setting.device) for tensor in as_tensors(data, pool))
    updates = max(1, many // batch)
    if len(y) < 2 * updates * batch:
        raise ValueError(f"expected {2 * updates * batch} rows or more for updates of {batch}, got {len(y)}")
    draw = torch.Generator().manual_seed(setting.seed)
    chosen = torch.randperm(len(y), generator=draw)[: updates * batch].to(setting.device)
    others = torch.ones(len(y), dtype=torch.bool, device=setting.device)
    others[chosen] = False
    worlds: dict[str, nn.Module] = {"": subject.model}
    if subject.net is not None:
        worlds["fresh_"] = started(subject.net, setting.seed).to(setting.device)
        setting.meter.watch(worlds["fresh_"])
    ladder: Mapping[str, Defence] = DEFENCES if "through" in setting.left_open("through") else {}
    onlooking = onlooker(setting, (x[others], y[others]))
    runs = [(name, model, None) for name, model in worlds.items()]
    runs += [(f"{name}_", list(worlds.values())[-1], defence) for name, defence in ladder.items()]
    evidence, found = dict[str, Tensor](), dict[str, Estimate]()
    for turn, (name, model, defence) in enumerate(runs):
        step = turn / len(runs)
        made = [
            _rebuilt(setting, model, (x[part], y[part]), batch, defence, draw, step + share / updates / len(runs))
            for share, part in enumerate(chosen.split(batch))
        ]
        pictures, told = torch.cat([picture for picture, _ in made]), torch.cat([right for _, right in made])
        evidence |= {f"{name}{key}": value for key, value in _compared(pictures, chosen, x).items()}
        evidence |= {f"{name}told": told, f"{name}picture": pictures[:SHOWN]}
        if onlooking is not None:
            evidence[f"{name}recognised"] = onlooking(pictures) == y[chosen]
        found |= estimates(evidence, name)
    means = torch.stack(
        [
            x[others & (y == label)].mean(0) if bool((others & (y == label)).any()) else x[others].mean(0)
            for label in y[chosen]
        ]
    )
    evidence |= {f"control_{key}": value for key, value in _compared(means, chosen, x).items()}
    found |= estimates(evidence, "control_")
    for name in worlds:
        gain = evidence[f"{name}rebuilt"].to(torch.int8) - evidence["control_rebuilt"].to(torch.int8)
        evidence[f"{name}gain"], found[f"{name}gain"] = gain, stats.difference(gain, f"{name}gain")
    evidence |= {"row": pool[chosen.cpu()], "label": y[chosen], "true": x[chosen][:SHOWN]}
    says = f"The mean images of their classes are nearest to {int(evidence['control_rebuilt'].sum())} of {len(chosen)}."
    passed = found["control_rebuilt"].value < 0.5
    check = Check(CONTROL, passed, says, found["control_rebuilt"].value)
    reason = "" if passed else f"{says} There are too few rows, or too like ones, to tell one from others."
    return replace(
        blank,
        status="ok" if passed else "inconclusive",
        reason=reason,
        checks=(check,),
        estimates=found,
        evidence=evidence,
    )


def _rebuilt(
    setting: Setting,
    model: nn.Module,
    rows: tuple[Tensor, Tensor],
    batch: int,
    defence: Defence | None,
    draw: torch.Generator,
    done: float,
) -> tuple[Tensor, Tensor]:
    """Rows rebuilt of one update of `rows`, in their order, and which of their labels were told."""
    x, y = rows
    with frozen(model):
        sent = gradients(model, x, y)
    more: dict[str, object] = {"shape": tuple(x.shape[1:])} if setting.left_open("shape") else {}
    if setting.left_open("seed"):
        more["seed"] = setting.seed
    if defence is not None:
        sent = defence.apply(sent, draw)
        more["through"] = defence.through(sent)
    began = time.perf_counter()
    made = cast(Reconstructed, setting.method(model, sent, **more))
    setting.meter.method_seconds += time.perf_counter() - began
    setting.told(done)
    picture = made.x.detach()
    sound = picture.shape == x.shape and bool(((picture >= 0) & (picture <= 1)).all())
    if not sound:
        raise ValueError(
            f"{setting.described.path}: expected rows {tuple(x.shape)} in [0, 1], got {tuple(picture.shape)} "
            f"from {float(picture.min()):.3g} to {float(picture.max()):.3g}"
        )
    told = torch.zeros_like(y, dtype=torch.bool) if made.y is None else _told(made.y, y)
    return picture[matched(picture, x)], told


def _told(said: Tensor, true: Tensor) -> Tensor:
    """Which of the `true` labels `(B,)` are among those `said`, each as often as it was said."""
    left, right = said.tolist(), torch.zeros_like(true, dtype=torch.bool)
    for place, label in enumerate(true.tolist()):
        if label in left:
            left.remove(label)
            right[place] = True
    return right


def _compared(pictures: Tensor, chosen: Tensor, pool: Tensor) -> dict[str, Tensor]:
    true = pool[chosen]
    like = {"ssim": ssim(pictures, true)} if true.ndim == 4 else {}
    return {"rebuilt": identified(pictures, chosen, pool), "psnr": psnr(pictures, true), **like}


def estimates(evidence: Mapping[str, Tensor], name: str) -> dict[str, Estimate]:
    """What is known of one run, whose evidence begins with `name`."""
    kinds = {
        "rebuilt": stats.share,
        "psnr": stats.median,
        "ssim": stats.median,
        "told": stats.share,
        "recognised": stats.share,
    }
    return {
        f"{name}{key}": kind(evidence[f"{name}{key}"], f"{name}{key}")
        for key, kind in kinds.items()
        if f"{name}{key}" in evidence
    }


def _noised(update: Gradients, draw: torch.Generator) -> Gradients:
    spread = NOISE * size(update)
    return tuple(one + spread * torch.randn(one.shape, generator=draw).to(one) for one in update)


def _pruned(update: Gradients, draw: torch.Generator) -> Gradients:
    """Only the largest entries, `LEFT` of all."""
    del draw
    entries = torch.cat([one.abs().flatten() for one in update])
    least = entries.topk(max(1, int(LEFT * len(entries)))).values[-1]
    return tuple(one * (one.abs() >= least) for one in update)


def _signed(update: Gradients, draw: torch.Generator) -> Gradients:
    del draw
    return tuple(one.sign() for one in update)


def _softly_signed(update: Gradients) -> Gradients:
    """A sign that can be differentiated, at the scale of the update's entries."""
    typical = (size(update) / sum(one.numel() for one in update) ** 0.5).detach().clamp_min(1e-30)
    return tuple(one / (one.abs() + typical) for one in update)


def _where_sent(update: Gradients) -> Through:
    return lambda own: tuple(one * (sent != 0) for one, sent in zip(own, update, strict=True))


DEFENCES: Mapping[str, Defence] = {
    "noised": Defence(_noised, lambda _: None),
    "pruned": Defence(_pruned, _where_sent),
    "signed": Defence(_signed, lambda _: _softly_signed),
}
