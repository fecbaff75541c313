"""A query flood: how many honest queries a service still answers, with a limit for each client and without.

The service works its queue off at a steady pace and refuses what would wait for too long; each client has a token
bucket (Heinanen and Guerin, RFC 2697, 1999, https://www.rfc-editor.org/rfc/rfc2697). Who has many names has many
buckets (Douceur, "The Sybil attack", IPTPS 2002). It is a simulation on a clock of its own: only what a query costs is
measured.

No guarantee.

Tags: atlas:AML.T0029, atlas:AML.T0034.000, nist-ai-100-2:NISTAML.014.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from buckler.encoders._adaptive import Adaptive
from buckler.encoders.sponge import sponge
from buckler.kinds import Readings
from buckler.target import frozen
from buckler.threat import Ball


def query_flood(
    model: nn.Module,
    x: Tensor,
    *,
    ball: Ball,
    honest: int = 20,
    bots: int = 2,
    flood: float = 2.0,
    load: float = 0.5,
    wait: float = 2.0,
    rate: float = 3.0,
    burst: float = 10.0,
    runs: int = 20,
    seed: int = 0,
) -> Readings:
    """In which share of `runs` each honest query of `x` `(N, C, H, W)` is answered: `(N,)` each.

    `honest` clients ask once a second each, in the mean, and keep the service busy for the share `load` of its time;
    `bots` ask `flood` times as much together. What would wait for more than `wait` seconds is refused, and, under
    limits, what a client asks beyond `rate` a second and a `burst`. `model` that is `Adaptive` costs what an input
    makes it: sponges are made of `x` within `ball`. Readings: `quiet` and `limited_quiet` without flood; `flooded` by
    copies of honest queries; `sponged` by sponges; and by sponges again, `capped` where no query costs more than an
    honest one in the mean, `limited` with limits, and `many_names` with limits against a name for each flooding query.
    A `ValueError` for a load that is not between 0 and 1, or clients or a flood that are none.
    """
    if not 0 < load < 1 or min(honest, bots, runs) < 1 or min(flood, wait, rate, burst) <= 0:
        raise ValueError(
            "expected a load between 0 and 1, clients, and a flood, a wait, a rate and a burst above 0, got "
            f"{load}, {honest}, {bots}, {flood}, {wait}, {rate} and {burst}"
        )
    plain, worst = _costs(model, x), _costs(model, x)
    capped, capped_worst = plain, plain
    if isinstance(model, Adaptive):
        sponges = sponge(model, x, ball=ball, steps=20, seed=seed)
        worst = _costs(model, sponges)
        with model.capped(x):
            capped, capped_worst = _costs(model, x), _costs(model, sponges)
    many, extra, draw = len(plain), round(flood * len(plain)), torch.Generator().manual_seed(seed)
    pace = honest * sum(plain) / many / load
    cases = {
        "quiet": (plain, None, 0, False),
        "limited_quiet": (plain, None, 0, True),
        "flooded": (plain, plain, bots, False),
        "sponged": (plain, worst, bots, False),
        "capped": (capped, capped_worst, bots, False),
        "limited": (plain, worst, bots, True),
        "many_names": (plain, worst, extra, True),
    }
    answered = {name: torch.zeros(many) for name in cases}
    for _ in range(runs):
        at = (many / honest * torch.rand(many + extra, generator=draw)).tolist()
        client = torch.randint(honest, (many,), generator=draw).tolist()
        for name, (own, theirs, ids, limited) in cases.items():
            more = 0 if theirs is None else extra
            costs = own + [(theirs or own)[turn % many] for turn in range(more)]
            clients = client + [honest + turn % max(ids, 1) for turn in range(more)]
            allowed = (rate, burst) if limited else None
            answered[name] += _served(at[: many + more], clients, costs, pace, wait, allowed)[:many] / runs
    return answered


def _served(
    at: Sequence[float],
    clients: Sequence[int],
    costs: Sequence[float],
    pace: float,
    wait: float,
    allowed: tuple[float, float] | None,
) -> Tensor:
    """Whether each query is answered, which comes `at` a second, by a service that works off `pace` a second."""
    backlog, last, answered = 0.0, 0.0, [0.0] * len(at)
    buckets = dict[int, tuple[float, float]]()
    for index in sorted(range(len(at)), key=at.__getitem__):
        now = at[index]
        backlog, last = max(0.0, backlog - pace * (now - last)), now
        if allowed is not None:
            rate, burst = allowed
            tokens, then = buckets.get(clients[index], (burst, now))
            tokens = min(burst, tokens + rate * (now - then))
            buckets[clients[index]] = (tokens - 1 if tokens >= 1 else tokens, now)
            if tokens < 1:
                continue
        if backlog <= pace * wait:
            backlog, answered[index] = backlog + costs[index], 1.0
    return torch.tensor(answered)


def _costs(model: nn.Module, x: Tensor) -> list[float]:
    """What each query costs; of an encoder that never stops early all cost the same."""
    with torch.no_grad(), frozen(model):
        return model.spent(x).tolist() if isinstance(model, Adaptive) else [1.0] * len(x)
