"""Inputs rebuilt from their features, measured against the inputs, and against what anybody could have drawn.

A row counts as rebuilt if what came out is nearer to it than to every other row at hand. The controls are what was
rebuilt of another row, and the mean image of the row's class: a picture that looks right because it looks like its
class reveals nobody. Beside them stand an untrained encoder, and guards that the adversary knows of.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor, nn

from buckler import stats
from buckler.data import floats
from buckler.embedding import embedded
from buckler.encoders._blurred import answering, fresh, guards, priced, prices
from buckler.encoders._scene import Scene, refusal, scene
from buckler.encoders._setting import Setting
from buckler.evaluation import skipped
from buckler.kinds import Reconstructed
from buckler.pictures import identified, psnr, ssim
from buckler.stats import Estimate
from buckler.target import Oracle, frozen
from buckler.threat import Threat
from buckler.train import fit, started
from buckler.trial import Check, Cost, Trial

MOST, MOST_BY_STEPS = 200, 32
"""The most rows that are rebuilt; by whoever holds the weights, who takes hundreds of steps for them, fewer."""
SHOWN = 8
APART = 7919
"""Added to the seed of the network that looks at pictures."""
THROUGH = ("top",)
"""Guards that whoever holds the weights goes through; others have no slope to follow, and are gone around."""
CONTROL = "pictures of other rows, and means of classes, are not taken for rebuilt rows"


def reconstructed(setting: Setting) -> Trial:
    """What the method rebuilds of test rows from their features; see `evaluate.evaluate`."""
    described = setting.described
    white = described.holds == "model"
    within = "features of each input" if white else "features of each input, and of images of the adversary's own"
    blank = setting.blank(
        Threat(described.holds, "nothing", within, "the inputs", described.tags),
        setting.asked("rows", "train_rows", "encoder_steps", "training_epochs"),
    )
    if reason := refusal(setting, white=white):
        return skipped(blank, reason)
    seen = scene(setting)
    if seen.test[0].ndim != 4:
        return skipped(blank, f"{described.path} rebuilds images, and the test rows are none")
    x = floats(seen.test[0][: MOST_BY_STEPS if white else MOST])
    if len(x) < 2:
        raise ValueError(f"expected two test rows or more, to tell one from the other, got {len(x)}")
    pool, places = torch.cat([floats(seen.test[0]), floats(seen.spare[0])]), torch.arange(len(x))
    y, looker = seen.test[1][: len(x)], _looker(setting, seen)
    tried: dict[str, nn.Module | Oracle] = {"": seen.encoder}
    if (control := fresh(setting, seen)) is not None:
        tried["untrained_"] = control
    guarded = guards(seen.encoder)
    tried |= {f"{name}_": guard for name, guard in guarded.items()}
    evidence, queries = dict[str, Tensor](), 0

    def compared(name: str, pictures: Tensor) -> None:
        evidence[f"{name}rebuilt"] = identified(pictures, places, pool)
        evidence[f"{name}psnr"], evidence[f"{name}ssim"] = psnr(pictures, x), ssim(pictures, x)
        if looker is not None:
            evidence[f"{name}recognised"] = looker(pictures) == y
        evidence[f"{name}picture"] = pictures[:SHOWN]

    for turn, (name, model) in enumerate(tried.items()):
        held = seen.encoder if white and name.rstrip("_") in set(guarded) - set(THROUGH) else model
        pictures, asked = _pictures(setting, held, embedded(model, x.to(setting.device)), seen)
        compared(name, pictures)
        queries += asked
        if not name:
            compared("shuffled_", pictures.roll(1, 0))
        setting.told((turn + 1) / len(tried))
    compared("mean_", _means(seen, y))
    others = evidence["shuffled_rebuilt"] | evidence["mean_rebuilt"]
    evidence["control_rebuilt"] = others
    evidence["gain"] = evidence["rebuilt"].to(torch.int8) - others.to(torch.int8)
    evidence |= {"true": x[:SHOWN], "label": y} | prices(setting, seen, guarded)
    found = estimates(evidence) | priced(evidence)
    wrong = found["control_rebuilt"]
    says = f"They are nearest to the row asked for {wrong.value:.1%} of the time."
    check = Check(CONTROL, wrong.low < 0.1, says, wrong.value)
    return replace(
        blank,
        status="ok" if check.passed else "inconclusive",
        reason="" if check.passed else f"{says} There are too few rows, or too like ones, to tell one from others.",
        checks=(check,),
        estimates=found,
        evidence=evidence,
        cost=Cost(queries=queries),
    )


def estimates(evidence: Mapping[str, Tensor]) -> dict[str, Estimate]:
    """Shares of rows rebuilt and recognised, medians of likeness, and what is rebuilt beyond the controls."""
    kinds = {"rebuilt": stats.share, "recognised": stats.share, "psnr": stats.median, "ssim": stats.median}
    found = {
        name: kind(value, name)
        for name, value in evidence.items()
        for word, kind in kinds.items()
        if name.endswith(word)
    }
    return found | {"gain": stats.difference(evidence["gain"], "gain")}


def _pictures(setting: Setting, model: nn.Module | Oracle, observed: Tensor, seen: Scene) -> tuple[Tensor, int]:
    """What the method makes of features `observed` `(B, D)`, in [0, 1], and how many questions it asked."""
    shape = tuple(seen.test[0].shape[1:])
    given: dict[str, Any] = {"shape": shape, "images": floats(seen.spare[0]).to(setting.device), "seed": setting.seed}
    given = {name: given[name] for name in setting.left_open(*given)}
    may = model if setting.described.holds == "model" else answering(model)
    began = time.perf_counter()
    made = cast(Reconstructed, setting.method(may, observed, **given)).x.detach().cpu()
    setting.meter.method_seconds += time.perf_counter() - began
    if tuple(made.shape) != (len(observed), *shape) or not bool(((made >= 0) & (made <= 1)).all()):
        raise ValueError(
            f"{setting.described.path}: expected images {(len(observed), *shape)} in [0, 1], got {tuple(made.shape)}"
        )
    return made, may.asked if isinstance(may, Oracle) else 0


def _looker(setting: Setting, seen: Scene) -> Callable[[Tensor], Tensor] | None:
    """What a network that learnt labels from other rows calls images; None where there is no network to train."""
    if setting.subject.net is None:
        return None
    untaught = started(setting.subject.net, setting.seed + APART).to(setting.device)
    model = fit(untaught, seen.spare, epochs=setting.training_epochs, seed=setting.seed)

    def called(x: Tensor) -> Tensor:
        with torch.no_grad(), frozen(model):
            return model(x.to(setting.device)).argmax(1).cpu()

    return called


def _means(seen: Scene, y: Tensor) -> Tensor:
    """The mean image of each label's rows, of those that are not asked about, or of all if it has none."""
    x, known = floats(seen.spare[0]), seen.spare[1]
    return torch.stack([(x[known == label] if bool((known == label).any()) else x).mean(0) for label in y])
