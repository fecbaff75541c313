"""ActiveThief: a copy that is asked, round after round, which rows it should learn next.

Pal, Gupta, Shukla, Kanade, Shevade and Ganapathy, "ActiveThief: model extraction using active learning and unannotated
public data", AAAI 2020, https://doi.org/10.1609/aaai.v34i01.5432.

Differs from the paper: every round trains an untrained network for the same `epochs`, with no validation rows and no
early stopping; training is the library's one loop.

Tags: atlas:AML.T0024.002, atlas:AML.T0005.001, atlas:AML.T0040, nist-ai-100-2:NISTAML.031, owasp-ml:ML05.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn

from buckler.catalog import find
from buckler.kinds import Copy
from buckler.target import ScoreOracle
from buckler.theft._thief import ask, begun, said, spread, taught
from buckler.threat import Ball

FIRST = 0.1
"""The share of what may be asked that is asked at random before there is a copy."""


def active_thief(
    oracle: ScoreOracle,
    pool: Tensor,
    *,
    net: Callable[[], nn.Module],
    strategy: Literal["uncertainty", "k-center", "dfal", "dfal+k-center"] = "dfal+k-center",
    rounds: int = 10,
    epochs: float = 100,
    batch: int = 32,
    rate: float = 0.1,
    seed: int = 0,
) -> Copy:
    """Ask about a tenth of what may be asked at random, then in `rounds` about rows that the copy so far chooses.

    `pool` `(N, ...)` in [0, 1] is asked about each row once; the oracle reveals scores, or labels where it must. A copy
    chooses rows by the entropy of its answers (`uncertainty`), answers far from those to rows asked about (`k-center`),
    closeness to its boundary as DeepFool finds it (`dfal`), or the former among as many of the closest as there are
    questions in all. Returns the last copy, evaluating. A `ValueError` for an empty pool or no round.
    """
    if rounds < 1:
        raise ValueError(f"expected at least 1 round, got {rounds}")
    copy = begun(net, pool, seed)
    order = torch.randperm(len(pool), generator=torch.Generator().manual_seed(seed)).to(pool.device)
    rest = pool[order]
    most = len(pool) if oracle.budget is None else min(len(pool), oracle.budget - oracle.asked)
    first = math.ceil(FIRST * most)
    xs, heard = list[Tensor](), list[Tensor]()
    for index in range(rounds + 1):
        many = first if index == 0 else first + (most - first) * index // rounds - sum(map(len, xs))
        chosen = torch.arange(many, device=rest.device)
        if xs and many > 0:
            chosen = _chosen(strategy, copy, rest, torch.cat(xs), many, most)
        x, answers = ask(oracle, rest[chosen])
        if len(x) == 0:
            continue
        rest = rest[torch.ones(len(rest), dtype=torch.bool, device=rest.device).scatter(0, chosen, False)]
        xs.append(x)
        heard.append(answers)
        lesson = torch.cat(xs), torch.cat(heard)
        copy = taught(begun(net, pool, seed), lesson, epochs=epochs, batch=batch, rate=rate, seed=seed)
    return copy


def _chosen(strategy: str, copy: nn.Module, rest: Tensor, asked: Tensor, many: int, most: int) -> Tensor:
    """The numbers of `many` of the rows `rest` that the copy would learn next."""
    answers = said(copy, rest)
    if strategy == "uncertainty":
        return torch.special.entr(answers).sum(1).topk(many).indices
    near = torch.arange(len(rest), device=rest.device)
    if strategy.startswith("dfal"):
        nearest = find("evasion/deepfool")(copy, rest, answers.argmax(1), ball=Ball("l2", math.inf))
        distance = (nearest - rest).flatten(1).norm(dim=1)
        near = distance.topk(many if strategy == "dfal" else min(max(many, most), len(rest)), largest=False).indices
    return near if strategy == "dfal" else near[spread(answers[near], many, said(copy, asked))]
