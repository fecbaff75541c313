"""A guard before everything that answers: the target, the control, and the shadows of who knows the guard.

What is left of a shadow are its answers. A guard is put before those as well (`Recorded`), so that the adversary's
models are guarded as the target is, with noise of their own, and none is trained again.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from buckler.data import Rows, as_tensors, count, drawn
from buckler.dice import fingerprint_rows
from buckler.imported import usable
from buckler.method import Method, describe, left_open
from buckler.privacy._game import LEAST, Game, not_in
from buckler.privacy._setting import Setting
from buckler.privacy._shadows import Shadows, views
from buckler.subject import Subject
from buckler.target import Asked, Oracle, frozen
from buckler.trial import Check

TRIED = 500
"""How many labels are looked at to know the classes, at most."""
Guard = Callable[[nn.Module, Rows, Rows | None, int], nn.Module]
"""Puts a guard before a model, given rows that it learnt from and, if it asks for them, rows that it did not, with a
seed of its own."""


class Unanswered(ValueError):
    """What is left of a shadow was asked something else than the shadow was."""


def guarding(setting: Setting, method: Method) -> Guard:
    """A guard's method as a `Guard`: what it asks for is filled in. It trains where it has to, and its time counts."""
    net = setting.subject.net
    more: dict[str, Any] = {} if net is None else {"net": lambda: usable(net(), "net").to(setting.device)}

    def guard(model: nn.Module, members: Rows, public: Rows | None, seed: int) -> nn.Module:
        given: dict[str, Any] = {"members": members, "public": public, "seed": setting.seed + seed, **more}
        began = time.perf_counter()
        made = method(model, **{name: given[name] for name in left_open(method, *given)})
        setting.meter.method_seconds += time.perf_counter() - began
        return made.eval()

    return guard


def refusal(setting: Setting, method: Method, *, shadowed: bool) -> str:
    """Why a guard cannot stand before what is attacked, or nothing; to be known before anything is trained.

    Before shadows it is tried on a few rows, with answers of chance: some guards ask more than the rows in question.
    """
    subject, path = setting.subject, describe(method).path
    if left_open(method, "net") and subject.net is None:
        return f"{path} trains a network: give the subject its `net`"
    if not shadowed or subject.train is None or count(subject.train) < 2 * LEAST:
        return ""
    x, y = as_tensors(subject.train, drawn(subject.train, min(setting.train_rows, TRIED), setting.seed))
    draw = torch.Generator().manual_seed(setting.seed)
    answers = torch.randn(2 * LEAST, setting.views, max(2, int(y.max()) + 1), generator=draw).log_softmax(2)
    x, y = x[: 2 * LEAST], y[: 2 * LEAST]
    held = torch.arange(len(y)) % 2 == 0
    try:
        guarded_shadows(Shadows(held[None], [answers], y), x, y, guarding(setting, method))
    except Unanswered:
        return f"{path} asks the model about inputs of its own, and shadows answer to the rows in question alone"
    return ""


def unknown_rows(subject: Subject) -> Rows:
    """What a defence is given of rows that nobody learnt from: those of the second half of the test rows that are no
    training rows. A `ValueError` for too few of them."""
    many = count(subject.test)
    half = torch.arange(many - many // 2, many)
    rows = half if subject.train is None else half[torch.isin(half, not_in(subject, subject.train))]
    if len(rows) < LEAST:
        raise ValueError(
            f"expected {LEAST} public rows or more, which nobody learnt from, got {len(rows)} in the second half of "
            f"the test rows: {len(half) - len(rows)} are training rows as well and were left out"
        )
    return as_tensors(subject.test, rows)


def apart(subject: Subject, public: Rows) -> Check:
    """How many of the `unknown_rows` were left out, as training rows."""
    many, out = count(subject.test) // 2, count(subject.test) // 2 - len(public[1])
    says = f"{out} of {many} public rows are training rows as well and were left out."
    return Check("no public row is a training row", True, says, float(out))


def behind(game: Game, guard: Guard, public: Rows | None) -> Game:
    """The same game with the guard before the target, the control and every shadow; `public` are rows of nobody.

    Each is guarded as the model that it is: with the rows that it learnt from itself.
    """
    target = Asked(game.target) if isinstance(game.target, Oracle) else game.target
    held = game.learnt or (game.x[game.member], game.y[game.member])
    return replace(
        game,
        target=guard(target, held, public, 0),
        control=None if game.control is None or game.spared is None else guard(game.control, game.spared, public, 1),
        shadows=None if game.shadows is None else guarded_shadows(game.shadows, game.x, game.y, guard),
    )


def guarded_shadows(shadows: Shadows, x: Tensor, y: Tensor, guard: Guard) -> Shadows:
    """What the shadows answer to rows `x` `(N, ...)`, `y` behind a guard that is made for each of them.

    It is given the rows that the shadow learnt from and the rest.
    """
    shown: list[Tensor] = []
    for place, (held, answers) in enumerate(zip(shadows.held, shadows.answers, strict=True)):
        model = Recorded(x, answers)
        guarded = guard(model, (x[held], y[held]), (x[~held], y[~held]), 2 + place)
        with torch.no_grad(), frozen(guarded):
            said = [guarded(view).float().log_softmax(1) for view in views(x, shadows.views)]
        shown.append(torch.stack(said, 1))
    return Shadows(shadows.held, shown, shadows.labels)


class Recorded(nn.Module):
    """A model of which only its answers `(N, Q, K)` to the views of rows `x` `(N, ...)` are left.

    It answers these inputs, whatever their order, and no others: `Unanswered`.
    """

    def __init__(self, x: Tensor, answers: Tensor) -> None:
        super().__init__()
        keys = torch.cat([fingerprint_rows(view) for view in views(x, answers.shape[1])])
        self.keys, order = keys.sort()
        self.answers = answers.transpose(0, 1).flatten(0, 1)[order]
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        asked = fingerprint_rows(x).to(self.keys.device)
        place = torch.searchsorted(self.keys, asked).clamp_max(len(self.keys) - 1)
        if not torch.equal(self.keys[place], asked):
            raise Unanswered("expected inputs that were answered before, got others: this guard asks of its own")
        return self.answers[place].to(x)
