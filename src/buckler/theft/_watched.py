"""A detector of queries, by whom it flags: honest clients, attackers, and attackers who know of it.

Its alarm is put where the most suspicious of some honest clients was, who send rows that no other client has; where
none of them is suspicious at all, the method's own threshold raises it. Others
then send rows of their own, pictures of scenes that hardly move, or now and then an input twice. Thieves and attacks on
single inputs ask with one budget; those who are flagged are stopped there, and come back knowing what watches them.
Everyone sends as many questions: scores grow with them. Honest clients of a kind draw from the same rows, each a part
of them at most, and intervals are over clients of these rows: those who send what thieves have show whether the alarm
carries over to other rows.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import cast

import torch
from torch import Tensor, nn

from buckler import stats
from buckler.catalog import find
from buckler.data import Rows, as_tensors, drawn, split
from buckler.dice import fingerprint_rows
from buckler.kinds import Watched
from buckler.method import Method, describe, left_open, plain
from buckler.stats import Estimate
from buckler.target import Oracle, QueryBudgetExceeded
from buckler.theft._door import door, shown_to
from buckler.theft._scene import Scene, accounted, enough, labels, robbed, scene
from buckler.theft._setting import Setting
from buckler.theft._stolen import EPOCHS, STEPS, compared, estimated, reach
from buckler.theft._thief import taught
from buckler.theft._traffic import HONEST, Client, Quiet, Unsuited, natural
from buckler.threat import Threat
from buckler.train import portions, started
from buckler.trial import Check, Trial
from buckler.watching import alarms, higher, looked

CLIENTS, THIEVES, ATTACKERS = 100, 3, 10
"""How many clients there are of each honest kind, of each thief, and of each attack on single inputs."""
LEAST = 40
"""The fewest questions of a client."""
PARTS, POOLS = 4, 2
"""Into how many clients who share no row the rows of a kind have to go, and those of the pool: else all are one."""
SOONER = {"least": 40, "every": 5}
"""How early and how often an adaptive client tests itself, where the detector waits."""
MARGIN = 0.8
"""How far below the alarm an adaptive client stays, as a share of it."""
THEFTS: Mapping[str, Mapping[str, object]] = {
    "theft/knockoff": {"epochs": 30.0},
    "theft/copycat": {"epochs": 30.0},
    "theft/jbda": {"start": 50},
    "theft/data_free": {},
}
"""Which thieves ask where none is named, with the knobs that are not their defaults."""
ATTACKS = ("evasion/square", "evasion/hop_skip_jump")
CALM = "honest clients who send different inputs are let alone"
Streams = Sequence[Rows]


@dataclass(frozen=True)
class _Guard:
    """The detector under test, what an adaptive client simulates in its place, the alarm, and what is watched over."""

    watch: Callable[[Rows], Watched]
    replica: Callable[[Rows], Watched]
    alarm: float
    setting: Setting
    seen: Scene
    many: int
    """How many questions a client asks."""

    def raised(self, look: Watched) -> Tensor:
        """At which questions the alarm is raised: by the method's own threshold where no honest client has a score."""
        return look.score > self.alarm if self.alarm > 0 else look.flagged

    def quiet(self, client: Client, kept: Callable[[Tensor, Tensor], Tensor], spare: Tensor, seed: int) -> Quiet:
        """`client` for one who knows the detector."""
        if self.alarm > 0:
            return Quiet(client, lambda sent: self.replica(sent).score, MARGIN * self.alarm, spare, kept, seed)
        return Quiet(client, lambda sent: self.replica(sent).flagged.double(), 0.5, spare, kept, seed)


def watched(setting: Setting) -> Trial:
    """Who is flagged, and what it is worth; see `evaluate.evaluate`."""
    return accounted(setting, _begun, _measured)


def _begun(setting: Setting) -> Trial:
    many, reveals = max(setting.queries), shown_to("scores", setting.reveals, setting.subject.model)
    threat = Threat(
        reveals, "nothing", f"{many} queries", "a copy, or a wrong label, unnoticed", setting.described.tags
    )
    asked: dict[str, object] = {"rows": setting.rows, "queries": [many], "reveals": reveals, "pool": setting.pool}
    named = {} if setting.attack is None else {"attack": plain(setting.attack)}
    blank = setting.blank(threat, {**asked, **named, "train_rows": setting.train_rows})
    few = f"a client who is watched asks {LEAST} queries or more: give a larger budget" if many < LEAST else ""
    return replace(blank, reason=enough(setting) or few)


def _measured(setting: Setting, blank: Trial) -> Trial:
    model, reveals, seen = setting.subject.model, blank.threat.sees, scene(setting)
    calm, rows = _honest(setting, seen)
    fewest = min(len(calm[0]), len(rows[0]))
    many = min(max(setting.queries), fewest // PARTS)
    if many < LEAST:
        most = f"a client asks {LEAST} queries or more, and sends one in {2 * PARTS} of the honest rows at most"
        return replace(blank, reason=f"{most}: give {2 * PARTS * LEAST} of them or more")
    own, early = ({"seed": setting.seed + more, **sooner} for more, sooner in ((0, {}), (1, SOONER)))
    watch = partial(looked, partial(setting.method, **{name: own[name] for name in left_open(setting.method, *own)}))
    replica = partial(setting.method, **{name: early[name] for name in left_open(setting.method, *early)})
    draw = torch.Generator().manual_seed(setting.seed)
    began = time.perf_counter()
    try:
        highest = [float(watch(natural(calm, many, draw)).score.max()) for _ in range(CLIENTS)]
    except Unsuited as error:
        return replace(blank, reason=f"{setting.described.path}: {error}")
    setting.meter.method_seconds += time.perf_counter() - began
    guard = _Guard(watch, replica, max(highest), setting, seen, many)
    evidence = {"calibration": torch.tensor(highest, dtype=torch.double), "asked": torch.tensor([many])}
    for name, kind in HONEST.items():
        evidence |= _flags(guard, [kind(rows, many, draw) for _ in range(CLIENTS)], name)
    if seen.truth is not None and len(seen.pool) >= POOLS * many:
        fewest = min(fewest, len(seen.pool))
        pool = seen.pool.cpu(), labels(model, seen.pool).cpu()
        evidence |= _flags(guard, [natural(pool, many, draw) for _ in range(CLIENTS)], "pool")
    evidence["apart"] = torch.tensor([fewest // many])
    setting.told(0.2)
    thieves = [partial(find(path), **knobs) for path, knobs in THEFTS.items()]
    thieves = thieves if setting.attack is None else [setting.attack]
    for index, thief in enumerate(thieves):
        if describe(thief).path != "theft/data_free" or reveals != "labels":
            evidence |= _theft(guard, thief, shown_to(describe(thief).holds, reveals, model))
        setting.told(0.2 + 0.6 * (index + 1) / len(thieves))
    for path in ATTACKS:
        holds = describe(find(path)).holds
        if holds == "labels" or reveals != "labels":
            evidence |= _attacks(guard, path, shown_to(holds, reveals, model))
    estimates = _estimates(evidence)
    check = _calm(estimates["flagged_natural"], estimates.get("flagged_pool"))
    threat = replace(blank.threat, within=f"{many} queries")
    return replace(blank, threat=threat, status="ok", checks=(check,), estimates=estimates, evidence=evidence)


def _honest(setting: Setting, seen: Scene) -> tuple[Rows, Rows]:
    """Rows that no thief has, with the labels that are answered, in two halves: to calibrate with, and to test with."""
    subject = setting.subject
    x = seen.x
    if subject.train is not None and setting.pool != "train":
        x, _ = as_tensors(subject.train, drawn(subject.train, setting.train_rows, setting.seed))
    x = x[~torch.isin(fingerprint_rows(x), fingerprint_rows(seen.pool.to(x.device)))]
    rows = x.cpu(), labels(subject.model, x.to(setting.device)).cpu()
    first, second = split(rows, 0.5, seed=setting.seed)
    return cast(Rows, first), cast(Rows, second)


def _flags(guard: _Guard, streams: Streams, name: str) -> dict[str, Tensor]:
    """Of each stream the number of the question that raises the alarm, from 1, and whether any does, `(C,)`.

    `own_` is whether it is flagged by the method's own threshold.
    """
    looks = [guard.watch(stream) for stream in streams]
    first = alarms([guard.raised(look) for look in looks])
    own = torch.tensor([bool(look.flagged.any()) for look in looks])
    return {f"flagged_{name}": first.isfinite(), f"first_{name}": first, f"own_{name}": own}


def _theft(guard: _Guard, thief: Method, reveals: str) -> dict[str, Tensor]:
    """Evidence of some thieves and their copies: not watched, stopped when flagged, and adaptive."""
    setting, seen, many = guard.setting, guard.seen, guard.many
    name = describe(thief).path.rpartition("/")[2]

    def steal(run: int, budget: int, quiet: bool = False) -> tuple[nn.Module | None, Client]:
        order = torch.randperm(len(seen.pool), generator=torch.Generator().manual_seed(setting.seed + run))
        mine, copy = replace(seen, pool=seen.pool[order.to(setting.device)]), None
        client = Client(door(setting.subject.model, reveals, budget))
        asks = guard.quiet(client, lambda _, moved: moved, mine.pool.flip(0), run) if quiet else client
        with suppress(QueryBudgetExceeded):
            oracle = Oracle(asks, client.door.reveals, budget)
            copy = robbed(replace(setting, seed=setting.seed + run), thief, oracle, mine)
        return copy, client

    copies, clients = zip(*(steal(run, many) for run in range(THIEVES)), strict=True)
    streams = [client.stream(seen.pool) for client in clients]
    evidence = _flags(guard, streams, name) | {f"spent_{name}": _lengths(streams)}
    evidence |= compared(cast(nn.Module, copies[0]), seen, seen.victim, f"_{name}")
    if bool(evidence[f"flagged_{name}"].any()):
        first = float(evidence[f"first_{name}"][0])
        stopped = copies[0] if math.isinf(first) else steal(0, int(first) - 1)[0]
        evidence |= compared(cast(nn.Module, stopped), seen, seen.victim, f"_{name}_stopped")
        again = f"{name}_adaptive"
        clients = [steal(run, many, quiet=True)[1] for run in range(THIEVES)]
        streams = [client.stream(seen.pool) for client in clients]
        evidence |= _flags(guard, streams, again) | {f"spent_{again}": _lengths(streams)}
        copy = _taught(guard, clients[0], float(evidence[f"first_{again}"][0]))
        evidence |= compared(copy, seen, seen.victim, f"_{again}")
    return evidence


def _lengths(streams: Streams) -> Tensor:
    return torch.tensor([float(len(said)) for _, said in streams])


def _taught(guard: _Guard, client: Client, first: float) -> nn.Module:
    """What learns everything that was answered before the `first` flagged question."""
    setting, (sent, answers) = guard.setting, client.lesson(guard.seen.pool)
    many = int(min(first - 1, len(sent)))
    copy = started(guard.seen.net, setting.seed).to(setting.device)
    if many == 0:
        return copy.eval()
    epochs = min(EPOCHS, STEPS / len(portions(many, 32)))
    lesson = sent[:many].to(setting.device), answers[:many].to(setting.device)
    return taught(copy, lesson, epochs=epochs, batch=32, rate=0.1, seed=setting.seed)


def _attacks(guard: _Guard, path: str, reveals: str) -> dict[str, Tensor]:
    """Evidence of an attack on some inputs, each by a client of its own, as for thieves.

    An input is turned at the first question within the limit that is answered wrongly.
    """
    setting, seen, many, ball = guard.setting, guard.seen, guard.many, reach(guard.setting)
    chosen, name = (seen.victim == seen.y).nonzero().flatten()[:ATTACKERS].tolist(), path.rpartition("/")[2]
    evidence = dict[str, Tensor]()

    def turn(row: int, quiet: bool) -> tuple[Rows, float]:
        x, y = seen.x[row : row + 1], seen.y[row : row + 1]

        def kept(wanted: Tensor, moved: Tensor) -> Tensor:
            inside = ball.contains(x, wanted).view(-1, *[1] * (x.ndim - 1))
            return torch.where(inside, ball.clip(x, moved), moved)

        client = Client(door(setting.subject.model, reveals, many))
        asks = guard.quiet(client, kept, seen.pool, row) if quiet else client
        with suppress(QueryBudgetExceeded):
            oracle = Oracle(asks, client.door.reveals, many)
            find(path)(oracle, x, y, ball=ball, queries=many, seed=setting.seed)
        sent, said = client.stream(x)
        won = ((said != y.cpu()) & ball.contains(x.cpu(), sent)).nonzero()
        return (sent, said), float(won[0]) + 1 if len(won) else math.inf

    for way in ("", "_adaptive") if chosen else ():
        streams, wins = zip(*(turn(row, bool(way)) for row in chosen), strict=True)
        evidence |= _flags(guard, streams, name + way)
        first, won = evidence[f"first_{name}{way}"], torch.tensor(wins)
        spent = evidence[f"spent_{name}{way}"] = torch.minimum(won, _lengths(streams))
        evidence[f"won_{name}{way}"] = won < first if way else won.isfinite()
        if not way:
            evidence[f"won_{name}_stopped"] = won < first
        if not bool((first <= spent).any()):
            break
    return evidence


def _estimates(evidence: Mapping[str, Tensor]) -> dict[str, Estimate]:
    found = dict[str, Estimate]()
    for name in evidence:
        what, _, of = name.partition("_")
        if what in ("flagged", "own", "won"):
            found[name] = stats.share(evidence[name], name)
        elif what in ("first", "spent"):
            found[name] = stats.median(evidence[name], name)
        elif what == "agreed":
            found |= estimated(evidence, f"_{of}")
    return found


def _calm(natural: Estimate, pool: Estimate | None) -> Check:
    """Whether the alarm is as rare among other honest clients, and with the thief's inputs, as where it was put."""
    kinds = [natural] if pool is None else [natural, pool]
    worst = max(kinds, key=lambda e: e.value)
    chance = min(1.0, len(kinds) * higher(round(worst.value * worst.n), worst.n, CLIENTS))
    with_pool = "" if pool is None else f", {pool.value:.1%} with the inputs that thieves have"
    says = f"{natural.value:.1%} of them are flagged{with_pool}; {1 / (CLIENTS + 1):.1%} is expected."
    good = chance > 1 - stats.LEVEL
    more = "" if good else " What clients send differs more than the rows that the alarm was put by: give more of them."
    return Check(CALM, good, says + more, worst.value)
