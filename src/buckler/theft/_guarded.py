"""A guard on the answers, by what a thief makes of them with and without it, and by what it costs who is honest.

Three copies are made with one budget: of the model's scores, of the guarded scores, and, by a thief who expects the
guard, of guarded labels alone, which most guards leave as they are. All are compared with the model's own labels.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from buckler import stats
from buckler.catalog import find
from buckler.evaluation import honest
from buckler.method import Method, left_open, plain
from buckler.target import Asked, Oracle
from buckler.theft._door import door, shown_to
from buckler.theft._scene import Scene, accounted, enough, robbed, scene
from buckler.theft._setting import Setting
from buckler.theft._stolen import compared, estimated, threat_of
from buckler.trial import Check, Trial

HARMLESS = "the guard costs honest users no accuracy"


def guarded(setting: Setting) -> Trial:
    """Copies through the guard and around it; see `evaluate.evaluate`."""
    return accounted(setting, _begun, _measured)


def _begun(setting: Setting) -> Trial:
    thief, reveals = _thief(setting), shown_to("scores", setting.reveals, setting.subject.model)
    blank = setting.blank(
        threat_of(setting, thief, reveals),
        {
            "rows": setting.rows,
            "queries": [max(setting.queries)],
            "reveals": reveals,
            "pool": setting.pool,
            "attack": plain(thief),
            "train_rows": setting.train_rows,
        },
    )
    if reveals == "labels":
        return replace(blank, reason=f"{setting.described.path} changes scores, and only labels are revealed")
    return replace(blank, reason=enough(setting))


def _thief(setting: Setting) -> Method:
    return setting.attack or find("theft/knockoff")


def _measured(setting: Setting, blank: Trial) -> Trial:
    subject, thief, seen = setting.subject, _thief(setting), scene(setting)
    reveals, budget = blank.threat.sees, max(setting.queries)
    model = subject.model if isinstance(subject.model, nn.Module) else Asked(subject.model)
    given = {"net": subject.net, "seed": setting.seed}
    guard = setting.method(model, **{name: given[name] for name in left_open(setting.method, *given)})
    evidence = honest(model, guard, seen.x, seen.y)
    evidence["correct_change"] = evidence["correct"].to(torch.int8) - evidence["unguarded_correct"].to(torch.int8)
    doors = {
        "": door(guard, reveals, budget),
        "_undefended": door(model, reveals, budget),
        "_adaptive": door(guard, "labels", budget),
    }
    for index, (name, oracle) in enumerate(doors.items()):
        copy = robbed(setting, thief, oracle, seen) if name != "_adaptive" else _by_labels(setting, thief, oracle, seen)
        evidence |= compared(copy, seen, seen.victim, name)
        setting.told((index + 1) / len(doors))
    before = evidence["agreed_undefended"].to(torch.int8)
    evidence["change"] = evidence["agreed"].to(torch.int8) - before
    evidence["adaptive_change"] = evidence["agreed_adaptive"].to(torch.int8) - before
    return replace(
        blank,
        status="ok",
        checks=(_harmless(evidence),),
        estimates={
            "guarded_accuracy": stats.share(evidence["correct"], "correct"),
            **estimated(evidence),
            **estimated(evidence, "_undefended"),
            **estimated(evidence, "_adaptive"),
            "fidelity_change": stats.difference(evidence["change"], "change"),
            "adaptive_fidelity_change": stats.difference(evidence["adaptive_change"], "adaptive_change"),
            "unguarded_accuracy": stats.share(evidence["unguarded_correct"], "unguarded_correct"),
            "accuracy_change": stats.difference(evidence["correct_change"], "correct_change"),
            "labels_kept": stats.share(evidence["label_kept"], "label_kept"),
            "scores_moved": stats.mean(evidence["moved"], "moved"),
            "brier": stats.mean(evidence["brier"], "brier"),
            "unguarded_brier": stats.mean(evidence["unguarded_brier"], "unguarded_brier"),
        },
        evidence=evidence,
    )


def _by_labels(setting: Setting, thief: Method, oracle: Oracle, seen: Scene) -> nn.Module:
    """What the thief makes of labels alone, or Copycat in its place where it cannot do without scores."""
    try:
        return robbed(setting, thief, oracle, seen)
    except ValueError:
        return robbed(setting, find("theft/copycat"), oracle, seen)


def _harmless(evidence: dict[str, Tensor]) -> Check:
    lost = stats.difference(evidence["correct_change"], "correct_change")
    kept = float(evidence["label_kept"].float().mean())
    says = f"{kept:.1%} of labels are kept; accuracy changes by {100 * lost.value:+.1f} points."
    return Check(HARMLESS, lost.high >= 0, says, lost.value)
