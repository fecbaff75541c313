"""Private pre-training, measured by what it is to prevent and what it costs.

It is judged beside plain pre-training on the same rows, and beside its own network before it learnt: what noise leaves
of learning may be nothing. EncoderMI is played on both encoders, each time with shadows that are made as the encoder
was.
"""

from __future__ import annotations

import math
import time
from dataclasses import replace
from functools import partial
from typing import cast

from torch import nn

from buckler.accountant import usual_delta
from buckler.catalog import find
from buckler.data import Rows
from buckler.encoders._inferred import SHADOWS, _estimated, _Game, _scored, _sides, _told, _too_few
from buckler.encoders._scene import pretrained, refusal, scene, tasks
from buckler.encoders._setting import Setting
from buckler.encoders._stolen import less, worth
from buckler.evaluation import skipped
from buckler.method import describe
from buckler.method import plain as plain_of
from buckler.threat import Threat
from buckler.trial import Check, Cost, Trial

PROMISE, LEARNT = "the attack does not contradict the promise", "something was learnt without labels"


def promised(setting: Setting) -> Trial:
    """The private encoder and the one that `pretraining` makes of the same rows. The private one takes as many epochs
    as its own knob says, since noise is made for those, and the other `encoder_steps`; see `evaluate.evaluate`."""
    described = setting.described
    attack = find("encoders/encoder_mi")
    within = f"{describe(attack).params['asked']} queries per row, {SHADOWS} encoders pre-trained on other rows"
    blank = setting.blank(
        Threat("features", "nothing", within, "which rows were learnt from", described.tags),
        setting.asked("rows", "train_rows", "encoder_steps") | {"pretraining": plain_of(setting.pretraining)},
    )
    setting = replace(setting, subject=replace(setting.subject, encoder=None))
    if reason := refusal(setting):
        return skipped(blank, reason)
    seen = scene(setting)
    learnt = cast(Rows, seen.learnt)
    game = _Game(*_sides(learnt, seen.spare, setting), seen.test)
    if reason := _too_few(game):
        return skipped(blank, reason)
    setting.told(0.2)
    began = time.perf_counter()
    own = partial(setting.method, epochs=cast(float, described.params["epochs"]))
    private = pretrained(setting, learnt, method=own)
    setting.meter.method_seconds += time.perf_counter() - began
    setting.told(0.4)
    plain, untrained = cast(nn.Module, seen.encoder), pretrained(setting, learnt, method=partial(own, epochs=0))
    task, queries = tasks(setting, seen)[:1], 0
    evidence = {
        **worth(private, task, setting.seed),
        **worth(plain, task, setting.seed, "plain_"),
        **worth(untrained, task, setting.seed, "untrained_"),
    }
    playing = replace(setting, method=attack, described=describe(attack))
    for name, target, made in (("", private, own), ("plain_", plain, setting.pretraining)):
        scores, asked = _scored(replace(playing, pretraining=made), target, game, {})
        evidence |= _told(name, scores, game)
        queries += asked
        setting.told(0.7 if not name else 1.0)
    for than in ("plain", "untrained"):
        for key in ("correct", "few_correct"):
            evidence[f"{key}_{than}_change"] = less(evidence, key, f"{than}_{key}")
    found = _estimated(evidence)
    params = described.params
    epsilon = cast(float, params["epsilon"])
    delta = cast("float | None", params["delta"]) or usual_delta(len(learnt[1]))
    most, shown, gain = told_at_most(epsilon, delta), found["balanced_accuracy"], found["few_correct_untrained_change"]
    kept = Check(
        PROMISE,
        shown.low <= most,
        f"Promised is ({epsilon:g}, {delta:.2g})-differential privacy for one of {len(learnt[1])} rows added or "
        f"removed, so nobody tells rows learnt from others with a balanced accuracy above {most:.4f}; that of "
        f"EncoderMI is {shown}.",
        epsilon,
    )
    without, few = found["untrained_few_correct"].value, found["few_correct"].value
    useful = Check(
        LEARNT,
        gain.low > 0,
        f"Probes of few labels are right on {few:.1%} of the rows, above the same network before it learnt on "
        f"{without:.1%}.",
        gain.value,
    )
    return replace(
        blank,
        params=blank.params | {"promised_delta": delta},
        status="ok" if kept.passed else "inconclusive",
        reason="" if kept.passed else kept.says,
        checks=(kept, useful),
        estimates=found,
        evidence=evidence,
        cost=Cost(queries=queries),
    )


def told_at_most(epsilon: float, delta: float) -> float:
    """The greatest balanced accuracy by which rows learnt from are told from others, where one more or less of them is
    hidden so well: there are always as many, so that a row that joins takes the place of another."""
    once, twice = math.exp(-epsilon), math.exp(-2 * epsilon)
    return (1 + min(twice, delta * (twice + once))) / (1 + twice)
