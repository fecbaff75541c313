"""Run any method of the area, distrust the answer, and return a Trial with per-row evidence.

A method scores rows without knowing who was learnt from; what its scores are worth is measured here, and so is what
they are worth on a control, a model to which nobody is a member: there members must not stand out. See `_game` for
what is attacked.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from buckler import stats
from buckler.data import batches, count
from buckler.method import Described, Method, describe, held, plain
from buckler.privacy import _measure
from buckler.privacy._game import Asked, Game, of_the_model, of_the_training, training_of
from buckler.subject import Subject
from buckler.target import Oracle, frozen, metered
from buckler.threat import Threat
from buckler.trial import Check, Cost, Trial, identity, peak_bytes

OWN, RETRAINED = "the subject's model", "a model trained on half of the rows"


def evaluate(
    method: Method,
    subject: Subject,
    *,
    rows: int = 2000,
    models: int = 16,
    views: int = 1,
    train_rows: int = 10_000,
    training_epochs: float = 15,
    keep: str | None = None,
    seed: int = 0,
    tick: Callable[[float, int], None] | None = None,
) -> Trial:
    """Run `method` on `rows` rows, about half of them members, and return what can be believed of it.

    A method without shadows attacks the subject's own model, with training rows as members and test rows as the rest. A
    method with `shadows` attacks a model trained on half of at most `train_rows` training rows, drawn by `seed`, with
    `models` shadow models on other halves, each asked in `views` ways. Training is the subject's `recipe`, or its `net`
    in the one loop for `training_epochs`. `keep` is a folder for the shadows' answers, which belongs to one subject:
    trials share them, and one that was stopped goes on.
    """
    described = describe(method)
    shadowed = "shadows" in _left_open(method, described)
    rows = min(rows, 2 * count(subject.test)) if not shadowed else rows
    asked: dict[str, object] = {"rows": rows, "train_rows": train_rows, "training_epochs": training_epochs}
    if shadowed:
        asked |= {"models": models, "views": views}
    if "seed" in _left_open(method, described):
        asked["seed"] = seed
    blank = Trial(
        method=described.path,
        kind=described.kind,
        params={**described.params, **asked, "attacked": RETRAINED if shadowed else OWN},
        threat=_threat(described, models if shadowed else 0, views),
        subject=identity(subject.name, subject.model, batches(subject.test, 256)),
        seed=seed,
        status="skipped",
        source=described.source,
    )
    reason = _refusal(described, subject, shadowed=shadowed)
    if reason:
        return replace(blank, reason=reason)
    device = _device(subject)
    modules = (subject.model,) if isinstance(subject.model, nn.Module) else ()
    with torch.random.fork_rng([device] if device.type == "cuda" else []), metered(*modules) as meter:
        torch.manual_seed(seed)

        def told(done: float) -> None:
            if tick is not None:
                tick(done, meter.forwards)

        folder = None if keep is None else Path(keep)
        settings = Asked(subject, rows, models, views, train_rows, training_epochs, seed, folder, device, meter, told)
        public = "public" in _left_open(method, described)
        game = of_the_training(settings) if shadowed else of_the_model(settings, public=public)
        trial = _played(blank, method, described, game, settings)
        spent = Cost(
            meter.forwards, meter.backwards, trial.cost.queries, meter.seconds, peak_bytes(device), meter.method_seconds
        )
    kept = {name: stats.rows(tensor) for name, tensor in trial.evidence.items()}
    return replace(trial, evidence=kept, cost=spent)


def _played(blank: Trial, method: Method, described: Described, game: Game, asked: Asked) -> Trial:
    """The method's scores of the target, and of the control; measured, and doubted."""
    with frozen(game.target) if isinstance(game.target, nn.Module) else nullcontext():
        scores, queries = _scored(method, described, game.target, game, asked)
        evidence = {**_measure.ranked(scores, game), **_measure.answered(game.target, game, asked.device)}
    found = _measure.estimates(evidence)
    checks = [_apart(game)]
    if game.control is None:
        says = "No control was trained: rows may be told apart by something else than who was learnt from."
        checks.append(Check(_measure.CONTROL, False, f"{says} Give the subject a `recipe` or a `net`."))
    else:
        again, _ = _scored(method, described, game.control, game, asked)
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


def _scored(
    method: Method, described: Described, target: nn.Module | Oracle, game: Game, asked: Asked
) -> tuple[Tensor, int]:
    """A score for every row, on the CPU, and how many questions it took. A `ValueError` for scores that are none."""
    may = held(described.holds, target)
    open_ = _left_open(method, described)
    given: dict[str, Any] = {"seed": asked.seed, "shadows": game.shadows, "public": game.public}
    given |= {"net": asked.subject.net}
    began = time.perf_counter()
    x, y = game.x.to(asked.device), game.y.to(asked.device)
    scores = cast(Tensor, method(may, x, y, **{name: given[name] for name in open_})).detach().cpu()
    asked.meter.method_seconds += time.perf_counter() - began
    if scores.shape != (len(y),) or not bool(scores.isfinite().all()):
        raise ValueError(
            f"{described.path}: expected {len(y)} finite scores, got {tuple(scores.shape)} with "
            f"{int((~scores.isfinite()).sum())} that are not"
        )
    return scores, may.asked if isinstance(may, Oracle) else 0


def _left_open(method: Method, described: Described) -> set[str]:
    """The knobs that an evaluation fills in: those that the method asks for and is not configured with."""
    configured = plain(method)
    named = set(cast("dict[str, object]", configured)) if isinstance(configured, dict) else set[str]()
    return {"seed", "shadows", "public", "net"} & set(described.knobs) - named


def _apart(game: Game) -> Check:
    """Whether rows are on one side only; those that are on both were left out."""
    says = f"{game.overlap} test rows are training rows as well and were left out." if game.overlap else ""
    return Check("no row is on both sides", True, says or "No test row is a training row.", float(game.overlap))


def _refusal(described: Described, subject: Subject, *, shadowed: bool) -> str:
    """Why the subject does not admit the method, or nothing."""
    path = described.path
    if described.kind != "infer":
        return f"{path} is no method that this area runs"
    if subject.train is None:
        return f"{path} asks who was learnt from: give the subject its `train`"
    if shadowed and training_of(subject, 1) is None:
        return f"{path} trains shadow models: give the subject its `recipe` or its `net`"
    if "net" in described.knobs and "net" not in described.params and subject.net is None:
        return f"{path} trains a network: give the subject its `net`"
    if shadowed or not isinstance(subject.model, Oracle):
        return ""
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


def _device(subject: Subject) -> torch.device:
    if isinstance(subject.model, nn.Module):
        for tensor in (*subject.model.parameters(), *subject.model.buffers()):
            return tensor.device
    return torch.device("cpu")
