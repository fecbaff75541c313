"""A detector of those who copy an encoder, by whom it flags, and by what is left to thieves and to honest users.

An honest account has a task of its own: two of the classes. What it covers grows with what it asks, so the alarm is put
a tenth above the most suspicious of some that are long-lived: they send each test row often, as from a camera. Others
then do the same with the rows that thieves have, or send different ones; some have a use for half of the classes, for
all, or for images of another kind, and ask as much as a thief does, if they have the images. How well thieves are told
from the honest is measured where both have asked as much, of the same rows: others may cover more, whoever asks.
Intervals are over accounts of these rows.

Then thieves ask all that they may, against what is done with a score: the account is stopped at the alarm, or noise
grows with the score, and every account's features are turned. Those who expect it ask only for images of one task, or
from so many accounts that each ends before any thief raised the alarm.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn

from buckler import stats
from buckler.catalog import find
from buckler.data import Rows, floats
from buckler.embedding import embedded, probe
from buckler.encoders._accounts import FRAMES, Account, Watcher, often, related, some
from buckler.encoders._pretrained import settled
from buckler.encoders._scene import Scene, Task, body, refusal, tasks
from buckler.encoders._setting import Setting
from buckler.encoders._stolen import compared, estimated, less, outfitted, robbed, threat_of, worth
from buckler.evaluation import skipped
from buckler.method import Method, describe, left_open, plain
from buckler.stats import Estimate
from buckler.target import Oracle
from buckler.trial import Check, Cost, Trial
from buckler.watching import alarms, higher, looked

CLIENTS, THIEVES, USERS = 100, 20, 8
"""How many honest accounts there are of each kind, how many thieves ask as much, and how many users are tried."""
TASK, LEAST, CLASSES = 2, 20, 4
"""Of how many classes an honest account's images are, the fewest questions of one, and the fewest classes of all."""
MARGIN = 0.1
"""How far above the most suspicious honest account the alarm is, as a share of that one's score."""
KEYS = 1 << 32
"""How many keys of accounts each seed has."""
EPOCHS = 40
"""How long a thief with many accounts learns how alike features are."""
CALM = "honest accounts with a task are let alone"
EXPECTING = {
    "naive": "who expects nothing and meets growing noise",
    "stopped": "who is stopped at the alarm",
    "narrow": "who asks for images of one task",
    "many": "who asks from many accounts, whose features are turned",
}
"""Thieves against what is done with a score, with their names for a reader."""


@dataclass(frozen=True)
class _Guard:
    """A detector with its alarm, and what is around it."""

    watch: Watcher
    alarm: float
    setting: Setting
    seen: Scene
    encoder: nn.Module
    classes: Sequence[int]
    """Those of which there are rows to calibrate and to ask with."""
    many: int
    """How many different images an account with a task sends,"""
    budget: int
    """and how many a thief does."""

    def account(self, *, guarded: bool = False, key: int = 0) -> Account:
        """An account answered as it is, or with noise and features turned by `key`, otherwise with another seed."""
        if not guarded:
            return Account(self.encoder, self.watch)
        own = self.setting.seed * KEYS + key
        return Account(self.encoder, self.watch, alarm=self.alarm, key=own, seed=own)


def watched(setting: Setting) -> Trial:
    """Whom the method flags, and what thieves and users are left with; see `evaluate.evaluate`."""
    thief, budget = setting.attack or find("encoders/stolen_encoder"), max(setting.queries)
    words = setting.asked("rows", "train_rows", "encoder_steps") | {"queries": [budget], "attack": plain(thief)}
    blank = setting.blank(threat_of(setting), words)
    if reason := refusal(setting, white=True):
        return skipped(blank, reason)
    seen, setting = outfitted(setting)
    used, calm, rows = tasks(setting, seen), seen.test, seen.spare
    classes = sorted(set(calm[1].tolist()) & set(rows[1].tolist()))
    if len(classes) < CLASSES:
        return skipped(blank, f"honest accounts have {TASK} of {CLASSES} classes or more, and there are {len(classes)}")
    many = min(budget, *(_fewest(part, classes) for part in (calm, rows)))
    if many < LEAST:
        few = f"the {TASK} rarest classes have {many}"
        return skipped(
            blank, f"an honest account asks about {LEAST} images of {TASK} classes, and {few}: give more rows"
        )
    encoder = cast(nn.Module, seen.encoder)
    given: dict[str, Any] = {"seed": setting.seed, "known": embedded(encoder, calm[0])}
    watch = partial(setting.method, **{name: given[name] for name in left_open(setting.method, *given)})
    draw = torch.Generator().manual_seed(setting.seed)
    first = _Guard(partial(looked, watch), math.inf, setting, seen, encoder, classes, many, budget)
    highest = _patient(first, calm, draw)["score_often"]
    most = float(highest.max())
    guard = replace(first, alarm=most + MARGIN * abs(most))
    evidence = {"calibration": highest, "asked": torch.tensor([many]), "budget": torch.tensor([budget])}
    evidence |= _patient(guard, rows, draw) | _honest(guard, rows, used, draw)
    setting.told(0.3)
    evidence |= _asked(guard, thief)
    setting.told(0.4)
    evidence |= _thefts(guard, thief, used, float(evidence["first_thief"].min()))
    setting.told(0.9)
    evidence |= _users(guard, used[0], draw)
    evidence |= _apart(evidence)
    estimates = _estimates(evidence)
    return replace(
        blank,
        status="ok",
        checks=(_calm(estimates["flagged_often"]),),
        estimates=estimates,
        evidence=evidence,
        cost=Cost(queries=int(evidence["spent"].sum())),
    )


def _fewest(data: Rows, classes: Sequence[int]) -> int:
    """How many rows the `TASK` rarest of `classes` have."""
    return sum(sorted(int((data[1] == one).sum()) for one in classes)[:TASK])


def _patient(guard: _Guard, rows: Rows, draw: torch.Generator) -> dict[str, Tensor]:
    """Evidence of accounts with a task that send every image often."""
    frames = often(rows[0], draw)
    seen = embedded(guard.encoder, frames)
    chosen = (some(rows, _some(guard.classes, TASK, draw), guard.many, draw) for _ in range(CLIENTS))
    chosen = ((FRAMES * one[:, None] + torch.arange(FRAMES)).flatten() for one in chosen)
    return _flags(guard, [(frames[one], seen[one]) for one in chosen], "often")


def _honest(guard: _Guard, rows: Rows, used: tuple[Task, ...], draw: torch.Generator) -> dict[str, Tensor]:
    """Evidence of accounts that send different images: with a task `many`, others as many as a thief if they have
    them."""
    classes, many, found = guard.classes, guard.many, dict[str, Tensor]()
    features = embedded(guard.encoder, rows[0])
    kinds = ("task", TASK, many), ("half", len(classes) // 2, guard.budget), ("whole", len(classes), guard.budget)
    for kind, of, most in kinds:
        chosen = (some(rows, _some(classes, of, draw), most, draw) for _ in range(CLIENTS))
        found |= _flags(guard, [(rows[0][one], features[one]) for one in chosen], kind, many)
    for task in used:
        if task.test[0] is not used[0].test[0] and len(task.test[1]) >= many:
            seen = embedded(guard.encoder, task.test[0])
            chosen = (some(task.test, range(task.classes), guard.budget, draw) for _ in range(CLIENTS))
            found |= _flags(guard, [(task.test[0][one], seen[one]) for one in chosen], task.name, many)
    return found


def _some(classes: Sequence[int], of: int, draw: torch.Generator) -> list[int]:
    return [classes[one] for one in torch.randperm(len(classes), generator=draw)[:of].tolist()]


def _flags(guard: _Guard, streams: list[Rows], name: str, many: int = 0) -> dict[str, Tensor]:
    """Of each stream the number of the question that raises the alarm, from 1, whether any does, whether any is above
    the method's `own` threshold, and the highest score of the first `many` questions, or of all."""
    looks = [guard.watch(stream) for stream in streams]
    scores, own = [look.score for look in looks], torch.tensor([bool(look.flagged.any()) for look in looks])
    first = alarms([score > guard.alarm for score in scores])
    most = torch.stack([score[: many or None].max() for score in scores]).float()
    return {f"flagged_{name}": first.isfinite(), f"first_{name}": first, f"own_{name}": own, f"score_{name}": most}


def _asked(guard: _Guard, thief: Method) -> dict[str, Tensor]:
    """Evidence of thieves who ask all that they may, and of their scores after `many` questions."""
    if "epochs" in describe(thief).params:  # what it asks is looked at, not its copy
        thief = partial(thief, epochs=0.01)
    streams = list[Rows]()
    for run in range(THIEVES):
        account, setting = guard.account(), replace(guard.setting, seed=guard.setting.seed + run)
        robbed(setting, thief, Oracle(account, "features", guard.budget), guard.seen)
        streams.append(account.stream)
    return _flags(guard, streams, "thief", guard.many)


def _thefts(guard: _Guard, thief: Method, used: tuple[Task, ...], soonest: float) -> dict[str, Tensor]:
    """What copies are worth, without a guard and of each of `EXPECTING`, and how often each of these `spent` asked.

    `soonest` is the first question at which any thief raised the alarm.
    """
    setting, seen, seed, budget = guard.setting, guard.seen, guard.setting.seed, guard.budget
    task, spent, free = used[:1], list[int](), guard.account()

    def copied(account: Account, most: int, pool: Rows) -> nn.Module:
        oracle = Oracle(account, "features", most)
        copy, _ = robbed(setting, thief, oracle, replace(seen, spare=pool))
        spent.append(oracle.asked)
        return copy

    evidence = worth(guard.encoder, task, seed) | worth(settled(setting, seen.spare[0]), task, seed, "untrained_")
    copies = {"undefended": copied(free, budget, seen.spare)}
    first = float(_flags(guard, [free.stream], "alone")["first_alone"][0])
    copies["naive"] = copied(guard.account(guarded=True), budget, seen.spare)
    copies["stopped"] = copied(guard.account(), _before(first, budget), seen.spare)
    draw = torch.Generator().manual_seed(seed)
    mine = some(seen.spare, _some(guard.classes, TASK, draw), len(seen.spare[1]), draw)
    pool = seen.spare[0][mine], seen.spare[1][mine]
    copies["narrow"] = copied(guard.account(guarded=True), budget, pool)
    x = floats(seen.spare[0][torch.randperm(len(seen.spare[0]), generator=draw)[:budget]]).to(setting.device)
    parts = x.split(_before(min(first, soonest), budget))
    own = [guard.account(guarded=True, key=one) for one in range(len(parts))]
    with torch.no_grad():
        answers = [account(part) for account, part in zip(own, parts, strict=True)]
    net = cast("Callable[[], nn.Module]", body(setting.subject))
    copies["many"] = related(lambda: net().to(setting.device), x, answers, epochs=EPOCHS, seed=seed)
    spent.append(len(x))
    for name, copy in copies.items():
        evidence |= worth(copy, task, seed, f"{name}_")
        if name != "undefended":
            evidence[f"change_{name}"] = less(evidence, f"{name}_few_correct", "undefended_few_correct")
    evidence |= compared(evidence, [*copies, "untrained"], task)
    evidence |= _flags(guard, [account.stream for account in own], "account")
    return evidence | {"spent": torch.tensor(spent), "accounts": torch.tensor([len(parts)])}


def _before(first: float, budget: int) -> int:
    """How many questions are safe where the one numbered `first` raises the alarm: two at least."""
    return int(max(2, min(first - 1, budget)))


def _users(guard: _Guard, task: Task, draw: torch.Generator) -> dict[str, Tensor]:
    """What share of rows each user's probe is right on, without a guard and with noise and turned features: `(USERS,)`.

    One with a task learns from `many` rows, one who has a use for all from as many as a thief asks for; both then ask
    about `many` more.
    """
    classes, many, found = guard.classes, guard.many, dict[str, list[float]]()
    for kind, of, most in (("task", TASK, many), ("whole", len(classes), guard.budget)):
        for turn in range(USERS):
            which = sorted(_some(classes, of, draw))
            known, asked = some(task.train, which, most, draw), some(task.test, which, many, draw)
            x = floats(torch.cat([task.train[0][known], task.test[0][asked]])).to(guard.setting.device)
            y = torch.searchsorted(torch.tensor(which), torch.cat([task.train[1][known], task.test[1][asked]]))
            for way in ("", "_guarded"):
                with torch.no_grad():
                    features = guard.account(guarded=bool(way), key=turn)(x).cpu()
                above = probe(features[: len(known)], y[: len(known)], classes=of, seed=turn)
                right = above(features[len(known) :]).argmax(1) == y[len(known) :]
                found.setdefault(f"user_{kind}{way}", []).append(float(right.double().mean()))
    evidence = {name: torch.tensor(shares) for name, shares in found.items()}
    for kind in ("task", "whole"):
        evidence[f"change_user_{kind}"] = evidence[f"user_{kind}_guarded"] - evidence[f"user_{kind}"]
    return evidence


def _estimates(evidence: Mapping[str, Tensor]) -> dict[str, Estimate]:
    found = estimated(evidence)
    for name, values in evidence.items():
        if name.startswith(("flagged_", "own_")):
            found[name] = stats.share(values, name)
        elif name.startswith("first_"):
            found[name] = stats.median(values, name)
        elif name.startswith("apart_"):
            found[name] = stats.area(values, name)
        elif "user_" in name:
            found[name] = stats.mean(values, name)
    return found


def _apart(evidence: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Scores of thieves with 1, and of honest accounts of each kind that asked as much with 0."""
    early, found = evidence["score_thief"], dict[str, Tensor]()
    for kind in ("task", "half", "whole", "digits"):
        if f"score_{kind}" in evidence:
            own = evidence[f"score_{kind}"]
            found[f"apart_{kind}"] = torch.stack(
                [torch.cat([early, own]), torch.cat([torch.ones_like(early), torch.zeros_like(own)])], 1
            )
    return found


def _calm(flagged: Estimate) -> Check:
    """Whether the alarm is as rare among other honest accounts as where it was put."""
    chance = higher(round(flagged.value * flagged.n), flagged.n, CLIENTS)
    says = (
        f"{flagged.value:.1%} of other accounts with a task are flagged; {1 / (CLIENTS + 1):.1%} is expected at most."
    )
    return Check(CALM, chance > 1 - stats.LEVEL, says, flagged.value)
