"""A defence by training, beside the same rows learnt without it: what it costs, and what still leaks.

Both models learn from the same half of the training rows. Both are attacked on the same rows, by the threshold on the
loss and by LiRA, whose shadows are trained as their target is: the adversary knows the defence and uses it too. A
defence that asks for public rows is given the second half of the test rows, and accuracy is of the first.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor, nn

from buckler import stats
from buckler.data import Rows, as_tensors, count
from buckler.evaluation import skipped
from buckler.imported import usable
from buckler.kinds import Protected
from buckler.privacy._game import Game, of_the_training
from buckler.privacy._guards import apart, unknown_rows
from buckler.privacy._setting import Setting
from buckler.privacy.lira import lira
from buckler.privacy.loss_threshold import loss_threshold
from buckler.stats import Estimate
from buckler.target import Oracle, frozen
from buckler.threat import Threat
from buckler.trial import Check, Trial, fingerprint

LEAKS = "the model leaks without the defence"


def protected(setting: Setting) -> Trial:
    """A model trained with the defence, measured and attacked beside one trained without."""
    subject, described = setting.subject, setting.described
    asked = setting.asked("rows", "train_rows", "training_epochs", "models", "views")
    within = f"{setting.models} shadow models trained with the defence on halves of rows of the same distribution"
    blank = setting.blank(Threat("scores", "nothing", within, "which rows were learnt from", described.tags), asked)
    if subject.train is None:
        return skipped(blank, f"{described.path} trains a model: give the subject its `train`")
    if subject.net is None:
        return skipped(blank, f"{described.path} trains a network: give the subject its `net`")
    many = count(subject.test)
    public = unknown_rows(subject) if setting.left_open("public") else None
    test = as_tensors(subject.test, min(setting.rows, many if public is None else many - many // 2))
    promises: list[Protected] = []
    keep = None if setting.keep is None else setting.keep / fingerprint({**blank.params, "source": described.source})
    defence = _training(setting, subject.net, public, promises)
    defended = of_the_training(replace(_within(setting, 0.0, 0.7), keep=keep), defence, control=False)
    plain = of_the_training(_within(setting, 0.7, 1.0), control=False)
    told = {"promised_epsilon": promises[0].epsilon, "promised_delta": promises[0].delta}
    evidence = _seen(defended, setting, test, "") | _seen(plain, setting, test, "control_")
    evidence["accuracy_lost"] = evidence["control_correct"].to(torch.int8) - evidence["correct"].to(torch.int8)
    evidence = {name: stats.rows(tensor) for name, tensor in evidence.items()}
    found = _estimates(evidence)
    checks = (_leaks(found), _answers(found, test[1]), *(() if public is None else (apart(subject, public),)))
    return replace(
        blank,
        params={**blank.params, **{name: value for name, value in told.items() if value is not None}},
        status="ok" if checks[0].passed else "inconclusive",
        reason="" if checks[0].passed else checks[0].says,
        checks=checks,
        estimates=found,
        evidence=evidence,
    )


def _within(setting: Setting, begin: float, end: float) -> Setting:
    """The setting of what lies between two shares of the evaluation."""

    def told(done: float) -> None:
        setting.told(begin + (end - begin) * done)

    return replace(setting, told=told)


def _training(
    setting: Setting, net: Callable[[], nn.Module], public: Rows | None, promises: list[Protected]
) -> Callable[[Rows], nn.Module]:
    """The defence as a training: every model has a seed of its own. What was promised of each goes to `promises`."""
    given: dict[str, Any] = {"net": lambda: usable(net(), "net").to(setting.device), "public": public}
    left = setting.left_open("net", "seed", "public")

    def training(data: Rows) -> nn.Module:
        given["seed"] = int(torch.randint(2**31, ()))
        began = time.perf_counter()
        made = cast(Protected, setting.method(data, **{name: given[name] for name in left}))
        setting.meter.method_seconds += time.perf_counter() - began
        promises.append(made)
        return made.model

    return training


def _seen(game: Game, setting: Setting, test: Rows, name: str) -> dict[str, Tensor]:
    """What a model answers to the test rows, and what is told of the rows that it learnt from."""
    if not isinstance(game.target, nn.Module) or game.shadows is None:
        raise TypeError("expected a model and its shadows")
    x, y = game.x.to(setting.device), game.y.to(setting.device)
    with frozen(game.target):
        scores = (
            lira(Oracle(game.target, "scores"), x, y, shadows=game.shadows),
            loss_threshold(Oracle(game.target, "scores"), x, y),
        )
        right = Oracle(game.target, "labels").labels(test[0].to(setting.device)).cpu() == test[1]
    ranked, threshold = (torch.stack([score.cpu().float(), game.member.float()], 1) for score in scores)
    return {f"{name}correct": right, f"{name}ranked": ranked, f"{name}threshold": threshold}


def _estimates(evidence: dict[str, Tensor]) -> dict[str, Estimate]:
    """Accuracy with the defence and without, what it costs, and what LiRA and the threshold find of either."""
    found = {
        "accuracy": stats.share(evidence["correct"], "correct"),
        "control_accuracy": stats.share(evidence["control_correct"], "control_correct"),
        "accuracy_lost": stats.difference(evidence["accuracy_lost"], "accuracy_lost"),
    }
    for name in ("", "control_"):
        found[f"{name}auc"] = stats.area(evidence[f"{name}ranked"], f"{name}ranked")
        found[f"{name}found_at_one_percent"] = stats.found(evidence[f"{name}ranked"], f"{name}ranked", alarms=0.01)
        found[f"{name}threshold_auc"] = stats.area(evidence[f"{name}threshold"], f"{name}threshold")
    return found


def _leaks(found: dict[str, Estimate]) -> Check:
    """Whether there is anything to defend: what does not leak without the defence proves nothing for it."""
    best = max((found[name] for name in ("control_auc", "control_threshold_auc")), key=lambda one: one.low)
    says = f"Without the defence the area under the curve is {best.value:.3f} [{best.low:.3f}, {best.high:.3f}]."
    more = "" if best.low > 0.5 else " Nothing surely leaks without it, so nothing is known of what it stops."
    return Check(LEAKS, best.low > 0.5, says + more, best.value)


def _answers(found: dict[str, Estimate], labels: Tensor) -> Check:
    """Whether the defended model has learnt anything: one that has not gives nobody away."""
    common = float(torch.bincount(labels).max()) / len(labels)
    learnt = found["accuracy"]
    says = f"{learnt.value:.1%} of test rows are answered correctly; the commonest label would have {common:.1%} right."
    return Check("the defended model has learnt more than the commonest label", learnt.low > common, says, learnt.value)
