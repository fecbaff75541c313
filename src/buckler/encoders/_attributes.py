"""What features tell of their input that the task does not need, beside what the task tells anyway.

Four attributes: how light an image is, whether it is mirrored, how it is turned, and, where the task is to tell pairs
of classes, which of the pair it is. A guess is measured against the commonest value among rows of the same answer to
the task: that is what whoever may know the answer guesses without features. Features of other rows must tell no more.
"""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from buckler import stats
from buckler.data import Rows, floats
from buckler.embedding import embedded
from buckler.encoders._blurred import answering, fresh, guards, priced, prices
from buckler.encoders._scene import refusal, scene
from buckler.encoders._setting import Setting
from buckler.evaluation import skipped
from buckler.kinds import Guessed
from buckler.stats import Estimate
from buckler.target import Oracle
from buckler.threat import Threat
from buckler.trial import Check, Cost, Trial

CONTROL = "features of other rows tell no attribute"
STRICT = 0.999
"""The level at which the control is called out, over all attributes."""


class Asked(NamedTuple):
    """Images `(N, C, H, W)` in [0, 1], the `value` of an attribute of each, and the `answer` of the task to it."""

    x: Tensor
    value: Tensor
    answer: Tensor


def attributes(setting: Setting) -> Trial:
    """How often each attribute is told; see `evaluate.evaluate`."""
    described = setting.described
    blank = setting.blank(
        Threat(
            described.holds,
            "nothing",
            "features of each input, and of images of the adversary's own",
            "what the task does not need to know of an input",
            described.tags,
        ),
        setting.asked("rows", "train_rows", "encoder_steps"),
    )
    if reason := refusal(setting):
        return skipped(blank, reason)
    seen = scene(setting)
    if seen.test[0].ndim != 4:
        return skipped(blank, f"{described.path} is tried on attributes of images, and the test rows are none")
    own, asked = (_worlds(rows, seen.spare, setting.seed + side) for side, rows in enumerate((seen.spare, seen.test)))
    guarded = guards(seen.encoder)
    models: dict[str, nn.Module | Oracle] = {"right": seen.encoder, **guarded}
    if (control := fresh(setting, seen)) is not None:
        models["untrained"] = control
    evidence, queries = dict[str, Tensor](), 0
    for turn, name in enumerate(own):
        known, hidden = own[name], asked[name]
        usual = _usual(known, hidden)
        evidence[f"usual_{name}"] = usual == hidden.value
        for way, model in models.items():
            features = embedded(model, hidden.x.to(setting.device))
            oracle = answering(model)
            scores = _scores(setting, oracle, features, known)
            queries += oracle.asked
            evidence[f"{way}_{name}"] = scores.argmax(1) == hidden.value
            if way == "right":
                evidence[f"shuffled_{name}"] = scores.roll(1, 0).argmax(1) == hidden.value
        setting.told((turn + 1) / len(own))
    evidence |= prices(setting, seen, guarded)
    return _told(blank, evidence, list(own), list(models), queries)


def _told(blank: Trial, evidence: dict[str, Tensor], names: list[str], ways: list[str], queries: int) -> Trial:
    found, level = dict[str, Estimate](), 1 - (1 - stats.LEVEL) / len(names)
    for name in names:
        for way in ("usual", *ways, "shuffled"):
            found[f"{way}_{name}"] = stats.share(evidence[f"{way}_{name}"], f"{way}_{name}")
        for way in (*ways, "shuffled"):
            gain = evidence[f"{way}_{name}"].to(torch.int8) - evidence[f"usual_{name}"].to(torch.int8)
            key = f"gain_{way}_{name}"
            evidence[key], found[key] = gain, stats.difference(gain, key, level)
    strict = 1 - (1 - STRICT) / len(names)
    more = [n for n in names if stats.difference(evidence[f"gain_shuffled_{n}"], n, strict).low > 0]
    says = f"They surely tell more than is usual of {', '.join(more)}." if more else "Of none more than is usual."
    return replace(
        blank,
        status="inconclusive" if more else "ok",
        reason=says if more else "",
        checks=(Check(CONTROL, not more, says),),
        estimates=found | priced(evidence),
        evidence=evidence,
        cost=Cost(queries=queries),
    )


def _worlds(rows: Rows, spare: Rows, seed: int) -> dict[str, Asked]:
    """The images of `rows` as each attribute has them, drawn by `seed`; how light is light, `spare` rows decide."""
    x, y = floats(rows[0]), rows[1]
    draw = torch.Generator().manual_seed(seed)
    coin, die = torch.randint(2, (len(y),), generator=draw), torch.randint(4, (len(y),), generator=draw)
    ends = floats(spare[0]).flatten(1).mean(1).quantile(torch.tensor([0.25, 0.5, 0.75]))
    found = {"light": Asked(x, torch.bucketize(x.flatten(1).mean(1), ends), y)}
    found["mirrored"] = Asked(torch.where(coin[:, None, None, None] == 1, x.flip(-1), x), coin, y)
    if x.shape[-1] == x.shape[-2]:
        turned = torch.stack([one.rot90(int(turns), (-2, -1)) for one, turns in zip(x, die, strict=True)])
        found["turned"] = Asked(turned, die, y)
    if int(spare[1].max()) > 2:
        found["sibling"] = Asked(x, y % 2, y // 2)
    return found


def _usual(known: Asked, hidden: Asked) -> Tensor:
    """The commonest value among known rows of the same answer, of all where there are none: `(N,)`."""
    values = 1 + int(torch.cat([known.value, hidden.value]).max())
    many = 1 + int(torch.cat([known.answer, hidden.answer]).max())
    counts = torch.zeros(many, values)
    counts.index_put_((known.answer, known.value), torch.ones(len(known.value)), accumulate=True)
    counts += 1e-3 * known.value.bincount(minlength=values) / len(known.value)
    return counts.argmax(1)[hidden.answer]


def _scores(setting: Setting, oracle: Oracle, features: Tensor, known: Asked) -> Tensor:
    """What the method says, `(B, V)`; a `ValueError` for scores that are none."""
    values = max(2, 1 + int(known.value.max()))
    given: dict[str, Any] = {"known": (known.x.to(setting.device), known.value), "values": values, "seed": setting.seed}
    given = {name: given[name] for name in setting.left_open(*given)}
    began = time.perf_counter()
    scores = cast(Guessed, setting.method(oracle, features, **given))["attribute"].detach().cpu()
    setting.meter.method_seconds += time.perf_counter() - began
    if scores.shape != (len(features), values) or not bool(scores.isfinite().all()):
        raise ValueError(f"{setting.described.path}: expected finite scores {(len(features), values)}, got {scores}")
    return scores


def most(trial: Trial) -> str:
    """The attribute that is told most surely beyond what is usual."""
    names = [key.removeprefix("gain_right_") for key in trial.estimates if key.startswith("gain_right_")]
    return max(names, key=lambda name: trial.estimates[f"gain_right_{name}"].low)
