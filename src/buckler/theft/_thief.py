"""What thieves share: asking within a budget, learning from answers, and choosing rows that lie far apart."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy

import torch
from torch import Tensor, nn

from buckler.target import Oracle, QueryBudgetExceeded, frozen
from buckler.train import fit, started

SLOWER = 2
"""How often a copy that learnt nothing begins again."""


def begun(net: Callable[[], nn.Module], pool: Tensor, seed: int) -> nn.Module:
    """The thief's network untrained, where its `pool` is; a `ValueError` for a pool of no rows."""
    if len(pool) == 0:
        raise ValueError("expected at least one row in the pool, got none: give some inputs of the oracle's domain")
    return started(net, seed).to(pool.device).eval()


def ask(oracle: Oracle, x: Tensor) -> tuple[Tensor, Tensor]:
    """As many of the rows `x` as the budget allows, from the first, and what is answered to them.

    Answers are labels `(B,)` or probabilities `(B, K)`, whichever the oracle reveals: a network learns from both.
    """
    if oracle.budget is not None:
        x = x[: max(0, oracle.budget - oracle.asked)]
    try:
        answers = oracle(x) if len(x) else torch.empty(0, dtype=torch.long, device=x.device)
    except QueryBudgetExceeded:  # that of an oracle behind this one
        return x[:0], torch.empty(0, dtype=torch.long, device=x.device)
    return x, answers.softmax(1) if oracle.reveals == "logits" and answers.ndim == 2 else answers


def taught(
    copy: nn.Module, lesson: tuple[Tensor, Tensor], *, epochs: float, batch: int, rate: float, seed: int
) -> nn.Module:
    """A copy of `copy` that has learnt the answers `lesson`: at `rate` or, where that was too great, a quarter of it.

    A network whose units died answers the same to everything, which a thief sees by the answers that were paid for: if
    these differ and its own do not, another begins, `SLOWER` times at the most.
    """
    x, answers = lesson
    alike = len(answers) == 0 or bool((answers == answers[0]).all())
    made = copy
    for turn in range(SLOWER + 1):
        made = fit(deepcopy(copy), lesson, epochs=epochs, batch=batch, rate=rate / 4**turn, seed=seed)
        told = said(made, x)
        if alike or float((told.amax(0) - told.amin(0)).max()) > 1e-3:
            break
    return made


def said(model: nn.Module, x: Tensor, chunk: int = 1024) -> Tensor:
    """The probabilities `(B, K)` that a copy gives to rows."""
    with torch.no_grad(), frozen(model):
        return torch.cat([model(rows).softmax(1) for rows in x.split(chunk)])


def spread(points: Tensor, many: int, near: Tensor) -> Tensor:
    """k-center: `many` of `points` `(N, D)`, each the farthest from those chosen before and from `near` `(M, D)`.

    Greedy, within twice the best radius (Gonzalez, Theoretical Computer Science 38, 1985). Row numbers, `(many,)`; with
    none near, the first one is row 0.
    """
    points, near = points.flatten(1), near.flatten(1)
    far = torch.cdist(points, near).amin(1) if len(near) else torch.full_like(points[:, 0], torch.inf)
    chosen: list[int] = []
    for _ in range(min(many, len(points))):
        chosen.append(int(far.argmax()))
        far = torch.minimum(far, torch.cdist(points, points[chosen[-1:]]).squeeze(1))
        far[chosen] = -1.0
    return torch.tensor(chosen, dtype=torch.long, device=points.device)
