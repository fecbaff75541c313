"""An inference of membership, played: what its scores are worth, and what they are worth on a control.

A method scores rows without knowing who was learnt from; what its scores are worth is measured here, and so is what
they are worth on a control, a model to which nobody is a member: there members must not stand out. See `_game` for
what is attacked.
"""

from __future__ import annotations

import time
from contextlib import nullcontext
from dataclasses import replace
from typing import Any, cast

from torch import Tensor, nn

from buckler import stats
from buckler.data import count
from buckler.evaluation import skipped
from buckler.method import Described, held, left_open, plain
from buckler.privacy import _measure
from buckler.privacy._game import Game, of_the_model, of_the_training, training_of
from buckler.privacy._guards import behind, guarding, refusal, unknown_rows
from buckler.privacy._setting import Setting
from buckler.subject import Subject
from buckler.target import Oracle, frozen
from buckler.threat import Threat
from buckler.trial import Check, Cost, Trial

OWN, RETRAINED = "the subject's model", "a model trained on half of the rows"
FILLED = ("seed", "shadows", "public", "net")


def inferred(setting: Setting) -> Trial:
    """The subject's own model attacked; by a method with shadows, one that was trained on half of the rows."""
    subject, described = setting.subject, setting.described
    shadowed = "shadows" in setting.left_open(*FILLED)
    if not shadowed:
        setting = replace(setting, rows=min(setting.rows, 2 * count(subject.test)))
    asked = setting.asked("rows", "train_rows", "training_epochs")
    if shadowed:
        asked |= {"models": setting.models, "views": setting.views}
    asked["attacked"] = RETRAINED if shadowed else OWN
    if setting.defence is not None:
        asked["defence"] = plain(setting.defence)
    blank = setting.blank(_threat(described, setting.models if shadowed else 0, setting.views), asked)
    defence = setting.defence
    reason = _refusal(described, subject, shadowed=shadowed, guarded=defence is not None)
    if not reason and defence is not None:
        reason = refusal(setting, defence, shadowed=shadowed)
    if reason:
        return skipped(blank, reason)
    needs = left_open(defence, "public") if defence is not None else set[str]()
    public = "public" in setting.left_open(*FILLED) | needs
    unknown = unknown_rows(subject) if shadowed and needs else None
    game = of_the_training(setting) if shadowed else of_the_model(setting, public=public)
    if defence is not None:
        game = behind(game, guarding(setting, defence), game.public or unknown)
    return _played(blank, game, setting)


def _played(blank: Trial, game: Game, setting: Setting) -> Trial:
    """The method's scores of the target, and of the control; measured, and doubted."""
    with frozen(game.target) if isinstance(game.target, nn.Module) else nullcontext():
        scores, queries = _scored(game.target, game, setting)
        evidence = {**_measure.ranked(scores, game), **_measure.answered(game.target, game, setting.device)}
    found = _measure.estimates(evidence)
    checks = [_apart(game)]
    if game.control is None:
        says = "No control was trained: rows may be told apart by something else than who was learnt from."
        checks.append(Check(_measure.CONTROL, False, f"{says} Give the subject a `recipe` or a `net`."))
    else:
        again, _ = _scored(game.control, game, setting)
        evidence["control_ranked"] = _measure.ranked(again, game)["ranked"]
        found["control_auc"] = stats.area(evidence["control_ranked"], "control_ranked")
        checks.append(_measure.null(evidence["control_ranked"]))
    reason = " ".join(check.says for check in checks if not check.passed and game.control is not None)
    return replace(
        blank,
        status="inconclusive" if reason else "ok",
        reason=reason,
        checks=tuple(checks),
        estimates=found,
        evidence=evidence,
        cost=Cost(queries=queries),
    )


def _scored(target: nn.Module | Oracle, game: Game, setting: Setting) -> tuple[Tensor, int]:
    """A score for every row, on the CPU, and how many questions it took. A `ValueError` for scores that are none."""
    may = held(setting.described.holds, target)
    open_ = setting.left_open(*FILLED)
    given: dict[str, Any] = {"seed": setting.seed, "shadows": game.shadows, "public": game.public}
    given |= {"net": setting.subject.net}
    began = time.perf_counter()
    x, y = game.x.to(setting.device), game.y.to(setting.device)
    scores = cast(Tensor, setting.method(may, x, y, **{name: given[name] for name in open_})).detach().cpu()
    setting.meter.method_seconds += time.perf_counter() - began
    if scores.shape != (len(y),) or not bool(scores.isfinite().all()):
        raise ValueError(
            f"{setting.described.path}: expected {len(y)} finite scores, got {tuple(scores.shape)} with "
            f"{int((~scores.isfinite()).sum())} that are not"
        )
    return scores, may.asked if isinstance(may, Oracle) else 0


def _apart(game: Game) -> Check:
    """Whether rows are on one side only; those that are on both were left out."""
    says = f"{game.overlap} test rows are training rows as well and were left out." if game.overlap else ""
    return Check("no row is on both sides", True, says or "No test row is a training row.", float(game.overlap))


def _refusal(described: Described, subject: Subject, *, shadowed: bool, guarded: bool) -> str:
    """Why the subject does not admit the method, or nothing."""
    path = described.path
    if subject.train is None:
        return f"{path} asks who was learnt from: give the subject its `train`"
    if shadowed and training_of(subject, 1) is None:
        return f"{path} trains shadow models: give the subject its `recipe` or its `net`"
    if "net" in described.knobs and "net" not in described.params and subject.net is None:
        return f"{path} trains a network: give the subject its `net`"
    if shadowed or not isinstance(subject.model, Oracle):
        return ""
    if guarded and subject.model.reveals == "labels":
        return "a guard changes scores, and the target reveals labels only"
    if described.holds == "model":
        return f"{path} needs the model itself, and only its answers can be had"
    if described.holds == "scores" and subject.model.reveals == "labels":
        return f"{path} needs scores, and the target reveals labels only"
    return ""


def _threat(described: Described, models: int, views: int) -> Threat:
    """What the adversary knows beside the answers: rows of the same distribution, and models trained on them."""
    per_row = described.params.get("queries", views)
    within = f"{per_row} {'query' if per_row == 1 else 'queries'} per row"
    if models:
        within += f", {models} shadow models on halves of rows of the same distribution"
    sees = {"model": "weights"}.get(described.holds, described.holds)
    return Threat(sees, "nothing", within, "which rows were learnt from", described.tags)
