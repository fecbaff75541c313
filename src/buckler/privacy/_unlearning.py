"""What forgets rows, tried: are they members before, are they members after, and is what is left as if they never were?

A random half of the training rows is learnt, and a quarter of that forgotten; the other half was never seen, so that
forgotten rows differ from those by nothing but chance. The same method is run once more on the rows that are left
alone, with nothing to forget: what forgets exactly answers like that model. Who has the answers from before as well as
those from after may look at what changed (Chen, Zhang, Wang, Backes, Humbert and Zhang, "When machine unlearning
jeopardizes privacy", CCS 2021, https://arxiv.org/abs/2005.02205).

What does not answer as training without the rows does is tried row by row as well: it forgets in many more trainings,
each with half of the rows in question, and LiRA says whether a row was forgotten or never seen (U-LiRA: Hayes,
Shumailov, Triantafillou, Khalifa and Papernot, "Inexact unlearning needs more careful evaluations to avoid a false
sense of privacy", 2024, https://arxiv.org/abs/2403.01218). What looks forgotten on average may still be told there.
"""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor, nn

from buckler import stats
from buckler.data import Rows, as_tensors, count, drawn, raw
from buckler.evaluation import skipped
from buckler.imported import usable
from buckler.kinds import Forgotten
from buckler.privacy._farm import halves, learnt
from buckler.privacy._game import LEAST, training_of
from buckler.privacy._guards import unknown_rows
from buckler.privacy._measure import STRICT
from buckler.privacy._setting import Setting
from buckler.privacy._shadows import Shadows, answers_of
from buckler.privacy.lira import lira
from buckler.privacy.loss_threshold import loss_threshold
from buckler.stats import Estimate
from buckler.target import Oracle, frozen
from buckler.threat import Threat
from buckler.trial import Check, Trial

SHOWED = "the rows show before they are forgotten, or by being forgotten"
GONE = "forgotten rows are told from rows never seen no better than chance"
EACH = "no better than chance either by who knows how each row is answered when forgotten and when never seen"
EXACT = "what is left answers as training without the rows does"
KEPT = ("", "before_", "kept_", "anew_kept_")
"""Whose accuracy is told, beside that of a plain training: after and before, and on rows that stay, after and anew."""
ROUNDING = 1e-6
"""By how much probabilities may differ that are the same up to rounding."""


def unlearned(setting: Setting) -> Trial:
    """The method's model before and after, on rows that it forgot and rows that it never saw."""
    subject, described = setting.subject, setting.described
    asked = setting.asked("rows", "train_rows", "training_epochs")
    threat = Threat("scores", "nothing", "1 query per row", "which rows were learnt from", described.tags)
    blank = setting.blank(threat, asked)
    training = training_of(subject, setting.training_epochs)
    if subject.train is None or subject.net is None or training is None:
        return skipped(blank, f"{described.path} trains a network: give the subject its `train` and its `net`")
    pool = drawn(subject.train, setting.train_rows, setting.seed)
    data = raw(subject.train, pool[: len(pool) // 2 * 2])
    member = halves(len(data[1]), 2, setting.seed + 1)[0]
    draw = torch.Generator().manual_seed(setting.seed)
    gone = torch.zeros(int(member.sum()), dtype=torch.bool)
    gone[torch.randperm(len(gone), generator=draw)[: min(setting.rows // 2, len(gone) // 4)]] = True
    if int(gone.sum()) < LEAST:
        raise ValueError(f"expected {8 * LEAST} training rows or more, of which {LEAST} are forgotten, got {len(pool)}")
    own = data[0][member], data[1][member]
    left = own[0][~gone], own[1][~gone]
    made = _made(setting, own, gone.nonzero().squeeze(1), setting.seed)
    setting.told(0.1)
    anew = _made(setting, left, torch.zeros(0, dtype=torch.long), setting.seed).before
    setting.told(0.15)
    control = learnt(training, left, seed=setting.seed, start=setting.seed, device=setting.device)
    setting.told(0.2)
    unseen = data[0][~member][: setting.rows // 2], data[1][~member][: setting.rows // 2]
    x, y = as_tensors((torch.cat([own[0][gone], unseen[0]]), torch.cat([own[1][gone], unseen[1]])))
    shown = torch.arange(len(y)) < int(gone.sum())
    known = count(subject.test) // 2 if setting.left_open("public") else 0
    test = as_tensors(subject.test, min(setting.rows, count(subject.test) - known))
    models = {"": made.after, "before_": made.before, "anew_": anew, "control_": control}
    evidence = dict[str, Tensor]()
    for name, model in models.items():
        setting.meter.watch(model)
        evidence |= _seen(model, (x, y), shown, test, setting.device, name)
    change = evidence["before_ranked"][:, 0] - evidence["ranked"][:, 0]
    evidence["change_ranked"] = torch.stack([change, shown.float()], 1)
    evidence["different"] = (evidence["said"] - evidence.pop("anew_said")).abs().amax(1) > ROUNDING
    evidence |= _remembered({"kept": made.after, "anew_kept": anew}, as_tensors(left, setting.rows), setting.device)
    tried: dict[str, object] = {}
    if bool(evidence["different"].any()):
        many = int(gone.sum())
        asked_of = torch.cat([own[0][gone], unseen[0][:many]]), torch.cat([own[1][gone], unseen[1][:many]])
        evidence |= _each(setting, left, asked_of, shown[: len(asked_of[1])], made)
        tried["models"] = setting.models
    evidence["accuracy_lost"] = evidence["control_correct"].to(torch.int8) - evidence["correct"].to(torch.int8)
    for name in ("said", "before_said", "control_said", "control_ranked", "anew_correct"):
        del evidence[name]
    evidence = {name: stats.rows(tensor) for name, tensor in evidence.items()}
    found = _estimates(evidence)
    checks = _checks(found, evidence)
    return replace(
        blank,
        params={**blank.params, **tried, "redone": round(made.redone, 4)},
        status="ok" if checks[0].passed else "inconclusive",
        reason="" if checks[0].passed else checks[0].says,
        checks=checks,
        estimates=found,
        evidence=evidence,
    )


def _made(setting: Setting, data: Rows, forget: Tensor, seed: int) -> Forgotten:
    net = setting.subject.net
    if net is None:
        raise TypeError("expected a net")
    given: dict[str, Any] = {"net": lambda: usable(net(), "net").to(setting.device), "seed": seed}
    if setting.left_open("public"):
        given["public"] = unknown_rows(setting.subject)
    began = time.perf_counter()
    made = setting.method(data, forget, **{name: given[name] for name in setting.left_open(*given)})
    setting.meter.method_seconds += time.perf_counter() - began
    return cast(Forgotten, made)


def _remembered(models: dict[str, nn.Module], left: Rows, device: torch.device) -> dict[str, Tensor]:
    """Which of the rows that stay every model answers right: what forgets everything has forgotten these rows too."""
    right = dict[str, Tensor]()
    for name, model in models.items():
        with frozen(model):
            right[f"{name}_correct"] = Oracle(model, "labels")(left[0].to(device)).cpu() == left[1]
    return right


def _each(setting: Setting, left: Rows, rows: Rows, shown: Tensor, made: Forgotten) -> dict[str, Tensor]:
    """LiRA of the `rows` in question, those `shown` being forgotten and the rest never seen, before and after.

    Every other model learns from the rows `left` and half of those in question, and forgets that half.
    """
    held, base = halves(len(shown), setting.models, setting.seed + 5), len(left[1])
    x, y = as_tensors(rows)
    answers: dict[str, list[Tensor]] = {"": [], "before_": []}
    for turn, inside in enumerate(held):
        data = torch.cat([left[0], rows[0][inside]]), torch.cat([left[1], rows[1][inside]])
        other = _made(setting, data, torch.arange(base, len(data[1])), setting.seed + 1 + turn)
        for name, model in (("", other.after), ("before_", other.before)):
            with frozen(model):
                answers[name].append(answers_of(Oracle(model, "scores"), x.to(setting.device), 1))
        setting.told(0.2 + 0.8 * (turn + 1) / len(held))
    evidence = dict[str, Tensor]()
    for name, model in (("", made.after), ("before_", made.before)):
        with frozen(model):
            score = lira(Oracle(model, "scores"), x.to(setting.device), y, shadows=Shadows(held, answers[name], y))
        evidence[f"{name}each"] = torch.stack([score.cpu().float(), shown.float()], 1)
    return evidence


def _seen(
    model: nn.Module, rows: Rows, shown: Tensor, test: Rows, device: torch.device, name: str
) -> dict[str, Tensor]:
    """What a model tells of the rows, forgotten ones `shown`, and what it answers to them and to test rows."""
    x, y = rows[0].to(device), rows[1].to(device)
    with frozen(model):
        score = loss_threshold(Oracle(model, "scores"), x, y).cpu().float()
        said = Oracle(model, "scores")(torch.cat([x, test[0].to(device)])).cpu()
    return {
        f"{name}correct": said[len(y) :].argmax(1) == test[1],
        f"{name}ranked": torch.stack([score, shown.float()], 1),
        f"{name}said": said,
    }


def _estimates(evidence: dict[str, Tensor]) -> dict[str, Estimate]:
    """Accuracy after, before and of a plain training on the rows that are left; and what is told of forgotten rows."""
    found = {f"{name}accuracy": stats.share(evidence[f"{name}correct"], f"{name}correct") for name in KEPT}
    found["control_accuracy"] = stats.share(evidence["control_correct"], "control_correct")
    found["accuracy_lost"] = stats.difference(evidence["accuracy_lost"], "accuracy_lost")
    for name in ("", "before_", "anew_", "change_"):
        found[f"{name}auc"] = stats.area(evidence[f"{name}ranked"], f"{name}ranked")
    for name in [name for name in ("each", "before_each") if name in evidence]:
        found[f"{name}_auc"] = stats.area(evidence[name], name)
        found[f"{name}_found_at_one_percent"] = stats.found(evidence[name], name, alarms=0.01)
    found["different"] = stats.share(evidence["different"], "different")
    return found


def _checks(found: dict[str, Estimate], evidence: dict[str, Tensor]) -> tuple[Check, ...]:
    """Whether there was something to forget, whether it is gone, and whether nothing else is left of it."""
    before, strict, change = found["before_auc"], stats.area(evidence["ranked"], "ranked", STRICT), found["change_auc"]
    shows = max(before.low, change.low, *(found[name].low for name in ("before_each_auc",) if name in found)) > 0.5
    showed = f"Before, the area under the curve is {_said(before)}, and by what changed {_said(change)}."
    showed += "" if shows else " The rows do not surely show, so nothing is known of how they are forgotten."
    differ = f"{int(evidence['different'].sum())} of {found['different'].n} rows are answered otherwise."
    row_by_row = tuple(
        Check(EACH, one.low <= 0.5, f"Row by row it is {_said(one)}.", one.value)
        for one in [stats.area(evidence[name], name, STRICT) for name in ("each",) if name in evidence]
    )
    return (
        Check(SHOWED, shows, showed, before.value),
        Check(
            GONE, strict.low <= 0.5 <= strict.high, f"After, the area under the curve is {_said(strict)}.", strict.value
        ),
        Check(EXACT, found["different"].value == 0, differ, found["different"].value),
        *row_by_row,
    )


def _said(area: Estimate) -> str:
    return f"{area.value:.3f} [{area.low:.3f}, {area.high:.3f}]"
