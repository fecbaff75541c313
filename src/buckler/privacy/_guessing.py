"""Guesses about rows, and about all of them, measured: hidden columns of rows, and a class's share in training.

A hidden column is guessed for rows that the subject's model learnt from and for rows that it did not, beside a guess
that never asks the model (imputation) and one that asks a model which learnt from neither. A share is guessed for
models that were trained here, of rows that the adversary's own models did not learn from.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import replace
from typing import cast

import torch
from torch import Tensor, nn

from buckler import stats
from buckler.data import Rows, as_tensors, drawn, mixed, raw
from buckler.dice import fingerprint_rows
from buckler.evaluation import skipped
from buckler.kinds import Guessed
from buckler.method import held
from buckler.privacy._columns import coded, filled, hidden, imputed, values
from buckler.privacy._farm import farm
from buckler.privacy._game import LEAST, of_the_model, training_of
from buckler.privacy._setting import Setting
from buckler.privacy._worlds import Worlds
from buckler.stats import Estimate
from buckler.target import Oracle, frozen
from buckler.threat import Threat
from buckler.trial import Check, Cost, Trial

QUESTIONS = 200
"""The most test rows that models are asked about to tell a share."""
CONTROL = "a model that learnt from other rows tells no more than imputation does"


def guessed(setting: Setting) -> Trial:
    """What the method guesses: a share, if it asks for `worlds`, else a hidden column of rows."""
    return _shares(setting) if setting.left_open("worlds") else _columns(setting)


# ------------------------------------------------------------------------------------------------ a hidden column


def _columns(setting: Setting) -> Trial:
    described, params = setting.described, setting.described.params
    asked = setting.asked("rows", "train_rows", "training_epochs")
    within = "a query per row and value"
    wants = "a hidden column of rows"
    blank = setting.blank(Threat(described.holds, "nothing", within, wants, described.tags), asked)
    reason = _refusal(setting)
    if reason:
        return skipped(blank, reason)
    game = of_the_model(setting, public=True)
    public = cast(Rows, game.public)
    named = cast("list[int] | None", params.get("columns"))
    columns = hidden(public[0], None if named is None else tuple(named))
    known = values(public[0], columns, int(str(params["levels"])))
    truth = coded(game.x, columns, known)
    blind = filled(game.x, columns, known.new_zeros(len(columns)))
    prior = imputed(public, blind, game.y, columns, known, setting.seed)
    imputation = prior.argmax(1) == truth
    setting.told(0.5)
    scores, queries = _asked(setting, game.target, blind, game.y, public, len(known))
    right, inside = scores.argmax(1) == truth, game.member
    gain = right.to(torch.int8) - imputation.to(torch.int8)
    evidence = {
        "right": right[inside],
        "imputed": imputation[inside],
        "gain": gain[inside],
        "outside_right": right[~inside],
        "outside_imputed": imputation[~inside],
        "outside_gain": gain[~inside],
        "guess": scores.argmax(1),
        "truth": truth,
        "member": inside,
        "row": game.places,
        "values": known,
        "columns": torch.tensor(columns),
    }
    check = Check(CONTROL, False, "No control was trained: give the subject a `recipe` or a `net`.")
    if game.control is not None:
        control, _ = _asked(setting, game.control, blind, game.y, public, len(known))
        also = control.argmax(1) == truth
        evidence["control_right"] = also[inside]
        evidence["control_gain"] = also[inside].to(torch.int8) - imputation[inside].to(torch.int8)
        evidence["leak"] = right[inside].to(torch.int8) - also[inside].to(torch.int8)
        more = stats.difference(evidence["control_gain"], "control_gain", 0.999)
        says = f"It is right in {more.value:+.1%} more of the rows [{more.low:+.1%}, {more.high:+.1%}]."
        check = Check(CONTROL, more.low <= 0, says, more.value)
    found: dict[str, Estimate] = {}
    for name in ("right", "imputed", "outside_right", "outside_imputed", "control_right"):
        if name in evidence:
            found[name] = stats.share(evidence[name], name)
    for name in ("gain", "outside_gain", "control_gain", "leak"):
        if name in evidence:
            found[name] = stats.difference(evidence[name], name)
    return replace(blank, status="ok", checks=(check,), estimates=found, evidence=evidence, cost=Cost(queries=queries))


def _refusal(setting: Setting) -> str:
    path, subject = setting.described.path, setting.subject
    if subject.train is None:
        return f"{path} asks about rows that were learnt from: give the subject its `train`"
    if isinstance(subject.model, Oracle) and subject.model.reveals == "labels":
        return f"{path} needs scores, and the target reveals labels only"
    return ""


def _asked(
    setting: Setting, target: nn.Module | Oracle, x: Tensor, y: Tensor, public: Rows, many: int
) -> tuple[Tensor, int]:
    """A score for every value of every row, and how many questions it took. A `ValueError` for scores that are none."""
    may = held(setting.described.holds, target)
    given: dict[str, object] = {"public": tuple(t.to(setting.device) for t in public), "seed": setting.seed}
    given = {name: given[name] for name in setting.left_open(*given)}
    began = time.perf_counter()
    with frozen(target) if isinstance(target, nn.Module) else nullcontext():
        made = cast(Guessed, setting.method(may, x.to(setting.device), y.to(setting.device), **given))
    setting.meter.method_seconds += time.perf_counter() - began
    scores = made["attribute"].detach().cpu()
    if scores.shape != (len(y), many) or not bool(scores.isfinite().all()):
        raise ValueError(f"{setting.described.path}: expected finite scores {(len(y), many)}, got {scores.shape}")
    return scores, may.asked if isinstance(may, Oracle) else 0


# ------------------------------------------------------------------------------------------------ a class's share


def _shares(setting: Setting) -> Trial:
    described, subject = setting.described, setting.subject
    asked = setting.asked("models", "train_rows", "training_epochs")
    params: Mapping[str, object] = described.params
    label, shares = int(str(params["label"])), tuple(cast("list[float]", params["shares"]))
    said = " or ".join(f"{share:.0%}" for share in shares)
    wants = f"whether class {label} was {said} of the training rows"
    within = f"{setting.models} shadow models on rows of the same distribution"
    blank = setting.blank(Threat(described.holds, "nothing", within, wants, described.tags), asked)
    training = training_of(subject, setting.training_epochs)
    if subject.train is None or training is None:
        lacks = "`train`" if subject.train is None else "`recipe` or its `net`"
        return skipped(blank, f"{described.path} trains models on shares of the rows: give the subject its {lacks}")
    pool = drawn(subject.train, setting.train_rows, setting.seed)
    questions, _ = as_tensors(subject.test, QUESTIONS)
    x, y = raw(subject.train, pool)
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(setting.seed))
    halves = order[: len(y) // 2], order[len(y) // 2 :]
    if len(y) < 2 * LEAST:
        raise ValueError(f"expected {2 * LEAST} training rows or more, half of them the adversary's, got {len(y)}")
    who, which = torch.zeros(2 * setting.models, len(y) + len(questions), dtype=torch.bool), list[Tensor]()
    for side, rows in enumerate(halves):
        drawn_, kinds = mixed(y[rows], label, shares, setting.models, setting.seed + side)
        who[side * setting.models : (side + 1) * setting.models, rows] = drawn_
        which.append(kinds)
    answers = farm(
        training,
        (torch.cat([as_tensors((x, y))[0], questions]), torch.cat([y, torch.zeros(len(questions), dtype=torch.long)])),
        who,
        keep=setting.keep,
        device=setting.device,
        seed=setting.seed,
        tick=lambda done: setting.told(0.9 * done),
    ).answers
    told = torch.stack([one[len(y) :, 0] for one in answers])
    worlds = Worlds(told[: setting.models], which[0], label, shares)
    began, guesses = time.perf_counter(), list[Tensor]()
    for own in told[setting.models :]:
        made = cast(Guessed, setting.method(_listed(questions, own), questions, worlds=worlds))
        guesses.append(made["share"].detach().cpu())
    setting.meter.method_seconds += time.perf_counter() - began
    scores = torch.stack(guesses)
    if scores.shape != (setting.models, len(shares)) or bool(scores.isnan().any()):
        raise ValueError(f"{described.path}: expected a score for each of {len(shares)} shares, got {scores.shape}")
    evidence = {"right": scores.argmax(1) == which[1], "score": scores, "which": which[1]}
    found = {"right": stats.share(evidence["right"], "right")}
    return replace(blank, status="ok", estimates=found, evidence=evidence, cost=Cost(queries=told.shape[1]))


def _listed(questions: Tensor, answers: Tensor) -> Oracle:
    """A model of which only answers to `questions` are left, as log-probabilities; a `ValueError` for other rows."""
    place = {int(key): at for at, key in enumerate(fingerprint_rows(questions))}

    def answer(x: Tensor) -> Tensor:
        keys = [int(key) for key in fingerprint_rows(x)]
        if any(key not in place for key in keys):
            raise ValueError("expected to be asked about the rows that were given, got others")
        return answers[[place[key] for key in keys]].exp()

    return Oracle(answer)
