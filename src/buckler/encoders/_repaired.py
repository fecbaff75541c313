"""A repair of the encoder, judged on backdoors that work, of who does not know it and of who does, and, for its cost
and for what a trigger does without a backdoor, on the encoder as it is.

Who knows the defences makes the trigger out of clean images, so that the repaired encoder of no backdoor obeys it now
and then as well: what counts is what the backdoor adds.
"""

from __future__ import annotations

import copy
import time
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor, nn

from buckler.encoders._backdoor import (
    ADAPTIVE,
    PLANTED,
    aims,
    answers,
    attack_of,
    beside,
    estimated,
    knowing,
    planted,
    staged,
    works,
)
from buckler.encoders._scene import body, refusal, unbuilt
from buckler.encoders._setting import Setting
from buckler.evaluation import skipped
from buckler.kinds import Repaired
from buckler.method import plain
from buckler.threat import Threat
from buckler.trial import Check, Trial

COSTLY = 0.1
HARMLESS = "the repair is harmless"


def repaired(setting: Setting) -> Trial:
    """What probes answer above the encoder with a backdoor, that one repaired, and the clean one repaired.

    The method is given the images of the user's rows, and no labels. An attack that was named is the only one.
    """
    attacks, known = {"": attack_of(setting)}, knowing(setting)
    attacks |= {} if known is None else {"adaptive_": known}
    blank = setting.blank(
        Threat("the weights", "training", "nothing", "a trigger that means a label downstream", setting.described.tags),
        {**setting.asked("rows", "train_rows", "encoder_steps")}
        | {f"{who}attack": plain(attack) for who, attack in attacks.items()},
    )
    if reason := refusal(setting, white=True):
        return skipped(blank, reason)
    if body(setting.subject) is None and "net" in setting.left_open("net"):
        says = f"{setting.described.path} trains another encoder: give the subject a `body` (or `net`)"
        return skipped(blank, says + unbuilt(setting.subject))
    seen, own = staged(setting)
    clean = cast(nn.Module, seen.encoder)
    setting.told(0.2)
    spared, evidence, checks = _mended(setting, clean, seen.spare[0]), dict[str, Tensor](), list[Check]()
    for turn, (who, attack) in enumerate(attacks.items()):
        made = planted(setting, attack, clean, own)
        wanted = aims(setting, made, seen, own, 1 if who else None)
        before = answers(made.model, made, wanted, setting.seed)
        after = answers(_mended(setting, made.model, seen.spare[0]), made, wanted, setting.seed)
        found = beside(after, before, name="undefended")
        for name, encoder in (("control", clean), ("spared", spared)):
            found |= {f"{name}_{key}": value for key, value in answers(encoder, made, wanted, setting.seed).items()}
        found["left"] = after["success"].to(torch.int8) - found["spared_success"].to(torch.int8)
        for name in (name for name in before if name.endswith("correct")):
            cost = found[f"spared_{name}"].to(torch.int8) - found[f"control_{name}"].to(torch.int8)
            found[name.replace("correct", "cost")] = cost
        evidence |= {f"{who}{name}": value for name, value in found.items()}
        checks.append(works(before["success"], found["control_success"], ADAPTIVE if who else PLANTED))
        setting.told(0.3 + 0.7 * (turn + 1) / len(attacks))
    estimates = estimated(evidence)
    cost = estimates["cost"].value
    says = f"It changes what a clean encoder is good for by {100 * cost:+.1f} points."
    doubts = " ".join(check.says for check in checks if not check.passed)
    return replace(
        blank,
        status="inconclusive" if doubts else "ok",
        reason=doubts,
        checks=(*checks, Check(HARMLESS, cost >= -COSTLY, says, cost)),
        estimates=estimates,
        evidence=evidence,
    )


def _mended(setting: Setting, encoder: nn.Module, x: Tensor) -> Repaired:
    build = body(setting.subject)
    given: dict[str, Any] = {"seed": setting.seed}
    if build is not None:
        given["net"] = lambda: build().to(setting.device)
    began = time.perf_counter()
    made = setting.method(copy.deepcopy(encoder), x, **{name: given[name] for name in setting.left_open(*given)})
    setting.meter.method_seconds += time.perf_counter() - began
    return cast(Repaired, made)
