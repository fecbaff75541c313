"""A guard on answers, by what is told of members with it and without it, and by what it costs who is honest.

A model is trained on half of the rows and asked with and without the guard, by attacks that know the guard: their
shadow models are guarded too, each by a guard of its own, so that whatever is fitted is fitted to guarded answers. One
asks about inputs that hardly differ from a row and takes the mean, which undoes what belongs to the content of an
input. One asks for labels alone, which a guard that keeps them cannot change. And one attack is made without knowledge
of the guard, an attack network that has only seen plain scores, in falling order and without the label: it is what
guards are often shown to stop.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from buckler import stats
from buckler.data import as_tensors, count
from buckler.dice import Dice
from buckler.evaluation import honest, skipped
from buckler.kinds import Membership
from buckler.method import Method, describe, held, left_open
from buckler.privacy._game import Game, of_the_training, training_of
from buckler.privacy._guards import behind, guarding, refusal, unknown_rows
from buckler.privacy._setting import Setting
from buckler.privacy._shadows import TINY, Shadows, confidence
from buckler.privacy.class_threshold import class_threshold
from buckler.privacy.label_only import label_only
from buckler.privacy.lira import lira
from buckler.privacy.loss_threshold import loss_threshold
from buckler.privacy.shadow import shadow
from buckler.stats import Estimate
from buckler.target import Oracle, ScoreOracle, frozen
from buckler.threat import Threat
from buckler.trial import Check, Trial

COPIES, JITTER = 50, 1e-5
"""How many inputs near a row are asked about, and by how much they differ from it: standard deviation per value."""


def near(oracle: ScoreOracle, x: Tensor, y: Tensor, *, seed: int = 0) -> Membership:
    """Score rows by the scaled confidence of the mean score of inputs that hardly differ: noise that belongs to the
    content of an input is another for each of them."""
    dice = Dice(x, seed)
    shown = (oracle((x + JITTER * dice.normal(*x.shape[1:]).to(x)).clamp(0, 1)).double() for _ in range(COPIES))
    mean = sum(shown, torch.zeros((), dtype=torch.double, device=x.device)) / COPIES
    return confidence(mean.clamp_min(TINY).log().cpu()[:, None], y.cpu()).squeeze(1)


def blind(oracle: ScoreOracle, x: Tensor, y: Tensor, *, shadows: Shadows, seed: int = 0) -> Membership:
    """Score rows as `shadow` does, by scores in falling order alone: it is told of no label."""
    none = torch.zeros_like(y)
    ordered = [answers.sort(dim=-1, descending=True).values for answers in shadows.answers]
    seen = Oracle(lambda rows: oracle(rows).sort(dim=1, descending=True).values, "scores")
    return shadow(seen, x, none, shadows=Shadows(shadows.held, ordered, none.cpu()), seed=seed)


ATTACKS: Mapping[str, Method] = {
    "lira": lira,
    "classes": class_threshold,
    "network": shadow,
    "threshold": loss_threshold,
    "near": near,
    "labels": partial(label_only, queries=20),
}
"""What is tried with the guard and without, by who knows it; "naive" is `blind`, which knows nothing of the guard."""
LEAKS = "the model leaks without the guard"
STOPPED = "who knows the guard tells members no better than chance, by these attacks"
KEPT = "every label is kept"


def guarded(setting: Setting) -> Trial:
    """Members told from the rest through the guard and around it; see `evaluate.evaluate`."""
    subject, described = setting.subject, setting.described
    asked = setting.asked("rows", "train_rows", "training_epochs", "models", "views")
    within = f"{setting.models} shadow models with guards of their own on halves of rows of the same distribution"
    blank = setting.blank(Threat("scores", "nothing", within, "which rows were learnt from", described.tags), asked)
    if subject.train is None or training_of(subject, setting.training_epochs) is None:
        need = "`train`" if subject.train is None else "`recipe` or its `net`"
        return skipped(
            blank, f"{described.path} is tried before a model that is trained here: give the subject its {need}"
        )
    reason = refusal(setting, setting.method, shadowed=True)
    if reason:
        return skipped(blank, reason)
    public = unknown_rows(subject) if setting.left_open("public") else None
    plain = of_the_training(setting, control=False)
    known = behind(plain, guarding(setting, setting.method), public)
    test = as_tensors(subject.test, min(setting.rows, count(subject.test) - count(subject.test) // 2))
    if not (isinstance(plain.target, nn.Module) and isinstance(known.target, nn.Module)):
        raise TypeError("expected models")
    evidence = honest(plain.target, known.target, test[0].to(setting.device), test[1])
    evidence["accuracy_lost"] = evidence["unguarded_correct"].to(torch.int8) - evidence["correct"].to(torch.int8)
    games = {"": known, "control_": plain}
    for name, attack in ATTACKS.items():
        for before, game in games.items():
            evidence[f"{before}{name}"] = _ranked(attack, game, setting)
    evidence["naive"] = _ranked(blind, replace(known, shadows=plain.shadows), setting)
    evidence["control_naive"] = _ranked(blind, plain, setting)
    found = _estimates(evidence)
    checks = (_leaks(found), _stopped(found), _kept(evidence))
    return replace(
        blank,
        status="ok" if checks[0].passed else "inconclusive",
        reason="" if checks[0].passed else checks[0].says,
        checks=checks,
        estimates=found,
        evidence=evidence,
    )


def _ranked(attack: Method, game: Game, setting: Setting) -> Tensor:
    """What an attack says of the rows of a game, with who is a member: `(N, 2)`."""
    if not isinstance(game.target, nn.Module):
        raise TypeError("expected a model")
    given: dict[str, Any] = {"shadows": game.shadows, "seed": setting.seed}
    with frozen(game.target):
        may = held(describe(attack).holds, game.target)
        x, y = game.x.to(setting.device), game.y.to(setting.device)
        score = attack(may, x, y, **{name: given[name] for name in left_open(attack, *given)})
    return torch.stack([score.cpu().float(), game.member.float()], 1)


def _estimates(evidence: dict[str, Tensor]) -> dict[str, Estimate]:
    """What the guard costs, and what every attack finds with it and without."""
    found = {
        "accuracy": stats.share(evidence["correct"], "correct"),
        "control_accuracy": stats.share(evidence["unguarded_correct"], "unguarded_correct"),
        "accuracy_lost": stats.difference(evidence["accuracy_lost"], "accuracy_lost"),
        "labels_kept": stats.share(evidence["label_kept"], "label_kept"),
        "scores_moved": stats.mean(evidence["moved"], "moved"),
        "brier": stats.mean(evidence["brier"], "brier"),
        "control_brier": stats.mean(evidence["unguarded_brier"], "unguarded_brier"),
    }
    for name in ("naive", "control_naive"):
        found[f"{name}_auc"] = stats.area(evidence[name], name)
    for name in [f"{before}{attack}" for attack in ATTACKS for before in ("", "control_")]:
        found[f"{name}_auc"] = stats.area(evidence[name], name)
        found[f"{name}_found_at_one_percent"] = stats.found(evidence[name], name, alarms=0.01)
    return found


def best(found: Mapping[str, Estimate], before: str = "") -> str:
    """The attack that tells most, with the guard or (`control_`) without."""
    return max(ATTACKS, key=lambda name: found[f"{before}{name}_auc"].low)


def _leaks(found: dict[str, Estimate]) -> Check:
    """Whether there is anything to guard: what does not leak without the guard proves nothing for it."""
    most = found[f"control_{best(found, 'control_')}_auc"]
    says = f"Without the guard the area under the curve is {most.value:.3f} [{most.low:.3f}, {most.high:.3f}]."
    more = "" if most.low > 0.5 else " Nothing surely leaks without it, so nothing is known of what it stops."
    return Check(LEAKS, most.low > 0.5, says + more, most.value)


def _stopped(found: dict[str, Estimate]) -> Check:
    name = best(found)
    left = found[f"{name}_auc"]
    says = f"With it, of {', '.join(ATTACKS)} the most is told by {name}, with an area under the curve of "
    says += f"{left.value:.3f} [{left.low:.3f}, {left.high:.3f}]."
    return Check(STOPPED, left.low <= 0.5, says, left.value)


def _kept(evidence: dict[str, Tensor]) -> Check:
    kept = evidence["label_kept"]
    says = f"{int((~kept).sum())} of {len(kept)} labels changed."
    same = torch.equal(evidence["labels"], evidence["control_labels"])
    says += " What labels alone tell is " + ("the same with the guard and without." if same else "not the same.")
    return Check(KEPT, bool(kept.all()), says, float(kept.float().mean()))
