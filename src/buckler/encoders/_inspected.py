"""An inspection of the encoder, believed only with its power and its null: the same inspection of a copy of the encoder
into which a backdoor was put, and of an encoder that was pre-trained here and that nobody else has touched. Another
backdoor, of who knows the inspection, says what is missed."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import cast

import torch
from torch import Tensor, nn

from buckler import stats
from buckler.data import Rows
from buckler.encoders._backdoor import ADAPTIVE, aims, answers, attack_of, knowing, planted, staged, triggered, works
from buckler.encoders._scene import Scene, body, pretrained, refusal, unbuilt
from buckler.encoders._setting import Setting
from buckler.evaluation import skipped
from buckler.kinds import Anomaly, Implanted
from buckler.method import plain
from buckler.threat import Threat
from buckler.trial import Check, Trial

FINDS, SPARES = "a planted backdoor is found", "a clean encoder is not flagged"


def inspected(setting: Setting) -> Trial:
    """What the method makes of the encoder, of the planted one, and, where the encoder is the subject's own and there
    is a body to train, of a clean one."""
    known = knowing(setting)
    blank = setting.blank(
        Threat("the weights", "training", "nothing", "a trigger that means a label downstream", setting.described.tags),
        {**setting.asked("rows", "train_rows", "encoder_steps"), "attack": plain(attack_of(setting))}
        | ({} if known is None else {"adaptive_attack": plain(known)}),
    )
    if reason := refusal(setting, white=True):
        return skipped(blank, reason)
    seen, own = staged(setting)
    encoder = cast(nn.Module, seen.encoder)
    setting.told(0.3)
    made = planted(setting, attack_of(setting), encoder, own)
    setting.told(0.6)
    x = seen.spare[0]
    evidence = _obeyed(setting, encoder, made, seen, own)
    given, found = _looked(setting, encoder, x), _looked(setting, made.model, x)
    control, missed = _control(setting, seen, given, x), None
    setting.told(0.8)
    if known is not None:
        hidden = planted(setting, known, encoder, own)
        missed = _looked(setting, hidden.model, x)
        worth = _obeyed(setting, encoder, hidden, seen, own)
        evidence |= {f"adaptive_{name}": value for name, value in worth.items()}
        evidence["adaptive_trigger"] = triggered(hidden, torch.zeros_like(x[:1]))
    whose = "the encoder that was given" if seen.own else "an encoder pre-trained on the rows"
    blank = replace(blank, params=blank.params | {"encoder": whose})
    for name, result in (("", given), ("planted_", found), ("control_", control), ("adaptive_", missed)):
        if result is not None:
            evidence |= {f"{name}score": result.score.clone(), f"{name}flagged": result.flagged.clone()}
            if result.mask is not None and result.pattern is not None:
                evidence |= {f"{name}mask": result.mask.clone(), f"{name}pattern": result.pattern.clone()}
    evidence["planted_trigger"] = triggered(made, torch.zeros_like(x[:1]))
    checks = (
        works(evidence["success"], evidence["without_success"]),
        *_checks(given, found, control, unbuilt(setting.subject)),
    )
    if known is not None:
        checks = (*checks, works(evidence["adaptive_success"], evidence["adaptive_without_success"], ADAPTIVE))
    bad = bool(given.flagged.any())  # what another attacker could hide takes nothing from what is found
    doubts = " ".join(check.says for check in checks if not check.passed and not (bad and check.name == ADAPTIVE))
    return replace(
        blank,
        status="inconclusive" if doubts else "ok",
        reason=doubts,
        checks=checks,
        estimates={
            name: stats.share(evidence[name], name) for name in evidence if name.endswith(("flagged", "success"))
        },
        evidence=evidence,
    )


def _obeyed(setting: Setting, encoder: nn.Module, made: Implanted, seen: Scene, own: Rows) -> dict[str, Tensor]:
    """Which test rows with the trigger are answered as wanted above the encoder with the backdoor, and without it."""
    aim = aims(setting, made, seen, own, 1)
    with_it, without = (answers(each, made, aim, setting.seed)["success"] for each in (made.model, encoder))
    return {"success": with_it, "without_success": without}


def _looked(setting: Setting, encoder: nn.Module, x: Tensor) -> Anomaly:
    began = time.perf_counter()
    given = {"seed": setting.seed}
    found = cast(Anomaly, setting.method(encoder, x, **{name: given[name] for name in setting.left_open(*given)}))
    setting.meter.method_seconds += time.perf_counter() - began
    return found


def _control(setting: Setting, seen: Scene, given: Anomaly, x: Tensor) -> Anomaly | None:
    """Of a clean encoder: the scene's, where it was pre-trained here, else one of the user's spare rows."""
    if not seen.own:
        return given
    if body(setting.subject) is None:
        return None
    return _looked(setting, pretrained(setting, seen.spare, seed=setting.seed + 1), x)


def _checks(given: Anomaly, found: Anomaly, control: Anomaly | None, more: str) -> tuple[Check, ...]:
    score = float(found.score.max())
    caught = bool(found.flagged.any())
    says = f"The planted backdoor is {'found' if caught else 'missed'}, with a score of {score:.2f}"
    checks = (Check(FINDS, caught, f"{says}; the encoder itself has {float(given.score.max()):.2f}.", score),)
    if control is not None:
        level, quiet = float(control.score.max()), not bool(control.flagged.any())
        says = f"An encoder that was pre-trained here and is clean is {'not ' if quiet else ''}flagged"
        return (*checks, Check(SPARES, quiet, f"{says}; its score is {level:.2f}.", level))
    if bool(given.flagged.any()):
        says = f"There is no clean encoder to compare with: give the subject a `body`{more}."
        return (*checks, Check(SPARES, False, says))
    return checks
