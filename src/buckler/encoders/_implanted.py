"""A backdoor put into the encoder by whoever trained it, judged by what users' probes answer, and by the null: the
same trigger on the encoder as it was."""

from __future__ import annotations

from dataclasses import replace
from typing import cast

import torch
from torch import Tensor, nn

from buckler.data import floats
from buckler.embedding import embedded
from buckler.encoders._backdoor import aims, answers, beside, estimated, planted, staged, triggered
from buckler.encoders._scene import refusal
from buckler.encoders._setting import Setting
from buckler.evaluation import skipped
from buckler.kinds import Implanted
from buckler.threat import Threat
from buckler.trial import Check, Trial

CHANCE = 0.3
SHOWN, DRAWN = 6, 150
"""How many rows are kept as pictures, and how many as points."""
IGNORED = "a clean encoder ignores the trigger"


def implanted(setting: Setting) -> Trial:
    """What probes of each task answer above the encoder with the backdoor, and above the one without."""
    blank = setting.blank(
        Threat("the weights", "training", "nothing", "a trigger that means a label downstream", setting.described.tags),
        setting.asked("rows", "train_rows", "encoder_steps"),
    )
    if reason := refusal(setting, white=True):
        return skipped(blank, reason)
    seen, own = staged(setting)
    clean = cast(nn.Module, seen.encoder)
    setting.told(0.3)
    made = planted(setting, setting.method, clean, own)
    setting.told(0.8)
    wanted = aims(setting, made, seen, own)
    evidence = beside(
        answers(made.model, made, wanted, setting.seed), answers(clean, made, wanted, setting.seed), name="control"
    )
    found = estimated(evidence)
    null = found["control_success"]
    says = (
        f"Above the encoder as it was, {null.value:.1%} of rows with the trigger are answered as the adversary wants."
    )
    more = "" if null.value <= CHANCE else " The trigger fools clean encoders: this is evasion more than a backdoor."
    return replace(
        blank,
        status="ok",
        checks=(Check(IGNORED, null.value <= CHANCE, says + more, null.value),),
        estimates=found,
        evidence=evidence | pictured(made, seen.test[0], seen.test[1]),
    )


def pictured(made: Implanted, x: Tensor, y: Tensor) -> dict[str, Tensor]:
    """A few rows without and with the trigger; and the features of more of both along their two widest directions."""
    shown, drawn = x[:SHOWN], x[:DRAWN]
    plain, moved = embedded(made.model, drawn), embedded(made.model, triggered(made, drawn))
    middle = plain.mean(0)
    _, _, axes = torch.linalg.svd(torch.cat([plain, moved]) - middle, full_matrices=False)
    return {
        "example_clean": floats(shown),
        "example_moved": triggered(made, shown),
        "example_label": y[:SHOWN],
        "clean_points": (plain - middle) @ axes[:2].T,
        "triggered_points": (moved - middle) @ axes[:2].T,
    }
