"""A guard on features, by what thieves make of them with and without it, and by what it costs who is honest.

Copies are made with one budget: of the encoder's features, of the guarded ones by the same thief, and of the guarded
ones by thieves who expect a guard: one who compares no more than what is shown, and one who compares images with each
other instead of numbers. An honest user learns from guarded features, and is answered with them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial

from torch import Tensor, nn

from buckler import stats
from buckler.catalog import find
from buckler.embedding import embedded
from buckler.encoders._scene import refusal, tasks
from buckler.encoders._setting import Setting
from buckler.encoders._stolen import compared, estimated, less, likeness, outfitted, robbed, threat_of, worth
from buckler.evaluation import skipped
from buckler.method import left_open, plain
from buckler.target import Oracle
from buckler.trial import Check, Cost, Trial

HARMLESS = "the guard costs honest users no accuracy"
ADAPTIVE = {"shown": "who compares what is shown", "contrasted": "who compares images"}
"""Thieves who expect the guard, with their names for a reader."""


def guarded(setting: Setting) -> Trial:
    """Copies through the guard and around it; see `evaluate.evaluate`."""
    thief = setting.attack or find("encoders/stolen_encoder")
    blank = setting.blank(
        threat_of(setting),
        {
            **setting.asked("rows", "train_rows", "encoder_steps"),
            "queries": [max(setting.queries)],
            "attack": plain(thief),
        },
    )
    if reason := refusal(setting, white=True):
        return skipped(blank, reason)
    seen, setting = outfitted(setting)
    if not isinstance(seen.encoder, nn.Module):
        raise TypeError("expected an encoder that is a module")
    used, budget = tasks(setting, seen), max(setting.queries)
    given = {"seed": setting.seed}
    guard = setting.method(seen.encoder, **{name: given[name] for name in left_open(setting.method, *given)})
    evidence = worth(seen.encoder, used, setting.seed) | worth(guard, used, setting.seed, "guarded_")
    features, asked = embedded(seen.encoder, seen.test[0]), 0
    setting.told(0.2)
    thefts = {
        "undefended": (seen.encoder, thief),
        "naive": (guard, thief),
        "shown": (guard, partial(find("encoders/stolen_encoder"), shown=True)),
        "contrasted": (guard, find("encoders/cont_steal")),
    }
    for index, (name, (model, method)) in enumerate(thefts.items()):
        oracle = Oracle(model, "features", budget)
        copy, _ = robbed(setting, method, oracle, seen)
        evidence |= worth(copy, used, setting.seed, f"{name}_") | likeness(features, copy, seen, f"_{name}")
        asked += oracle.asked
        setting.told(0.2 + 0.2 * (index + 1))
    evidence |= compared(evidence, ["guarded", *thefts], used)
    evidence["change_guarded"] = less(evidence, "guarded_correct", "correct")
    evidence["change_guarded_few"] = less(evidence, "guarded_few_correct", "few_correct")
    for name in ("naive", *ADAPTIVE):
        evidence[f"change_{name}"] = less(evidence, f"{name}_few_correct", "undefended_few_correct")
    return replace(
        blank,
        status="ok",
        checks=(_harmless(evidence),),
        estimates=estimated(evidence),
        evidence=evidence,
        cost=Cost(queries=asked),
    )


def _harmless(evidence: Mapping[str, Tensor]) -> Check:
    lost, few = (stats.difference(evidence[name], name) for name in ("change_guarded", "change_guarded_few"))
    says = f"Accuracy changes by {100 * lost.value:+.1f} points, with few labels by {100 * few.value:+.1f}."
    return Check(HARMLESS, min(lost.high, few.high) >= 0, says, lost.value)
