"""Knockoff Nets: a network that learns a victim's answers to natural inputs.

Orekondy, Schiele and Fritz, "Knockoff Nets: stealing functionality of black-box models", CVPR 2019,
https://arxiv.org/abs/1812.02766.

Differs from the paper: the network starts untrained, not from ImageNet's weights; training is the library's one loop.
The paper's adaptive strategy has one arm for each class that the pool's images are labelled with; this pool has no
labels, so an arm is the rows nearest to one of its k-centers. Rewards come after every batch of questions, and each is
scaled to [0, 1] by its range, which is taken as 1 where it has none; no logarithm of a probability that can be 0 is
taken.

Tags: atlas:AML.T0024.002, atlas:AML.T0005.001, atlas:AML.T0040, nist-ai-100-2:NISTAML.031, owasp-ml:ML05.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from buckler.kinds import Copy
from buckler.target import ScoreOracle
from buckler.theft._thief import ask, begun, said, spread, taught
from buckler.train import fit, started

ROUNDS = 20
"""In how many batches an adaptive thief spends what it may ask."""


def knockoff(
    oracle: ScoreOracle,
    pool: Tensor,
    *,
    net: Callable[[], nn.Module],
    strategy: Literal["random", "adaptive"] = "random",
    arms: int = 20,
    epochs: float = 100,
    batch: int = 32,
    rate: float = 0.1,
    seed: int = 0,
) -> Copy:
    """Ask about rows of `pool` `(N, ...)` in [0, 1], each once, and train `net()` on the answers.

    The oracle reveals scores, or labels where it must. `random` rows are asked about, or rows from `arms` groups by an
    `adaptive` strategy: a gradient bandit over groups that is rewarded for answers that are sure, unlike those before,
    and unlike the copy's. Returns the copy, evaluating; where the oracle's budget is less than the pool, it is spent.
    A `ValueError` for an empty pool.
    """
    copy = begun(net, pool, seed)
    order = torch.randperm(len(pool), generator=torch.Generator().manual_seed(seed)).to(pool.device)
    if strategy == "adaptive":
        x, answers = _adaptive(oracle, pool[order], copy, arms=arms, epochs=epochs, batch=batch, rate=rate, seed=seed)
        copy = started(net, seed).to(pool.device).eval()
    else:
        x, answers = ask(oracle, pool[order])
    return taught(copy, (x, answers), epochs=epochs, batch=batch, rate=rate, seed=seed) if len(x) else copy


def _adaptive(
    oracle: ScoreOracle,
    pool: Tensor,
    copy: nn.Module,
    *,
    arms: int,
    epochs: float,
    batch: int,
    rate: float,
    seed: int,
) -> tuple[Tensor, Tensor]:
    """The rows that a bandit asked about, and their answers; `copy` learns as it goes."""
    draw = torch.Generator().manual_seed(seed)
    flat = pool.flatten(1)
    arm = torch.cdist(flat, flat[spread(flat, arms, flat[:0])]).argmin(1).cpu()
    most = len(pool) if oracle.budget is None else min(len(pool), oracle.budget - oracle.asked)
    liking, counts = torch.zeros(int(arm.max()) + 1), torch.zeros(int(arm.max()) + 1)
    fresh = torch.ones(len(pool), dtype=torch.bool)
    xs, all_answers, baseline = [pool[:0]], list[Tensor](), 0.5
    for index in range(ROUNDS):
        many = most * (index + 1) // ROUNDS - most * index // ROUNDS
        chosen = _draws(liking, arm, fresh, many, draw)
        x, answers = ask(oracle, pool[chosen.to(pool.device)])
        if len(x) == 0:
            continue
        shown = answers if answers.ndim == 2 else F.one_hot(answers, said(copy, x[:1]).shape[1]).float()
        reward = _reward(shown, torch.cat(all_answers) if all_answers else shown, said(copy, x)).cpu()
        for one, gain in zip(arm[chosen[: len(x)]].tolist(), reward.tolist(), strict=True):
            counts[one] += 1
            chance = liking.softmax(0)
            step = (gain - baseline) / counts[one]
            liking -= step * chance
            liking[one] += step
        baseline += (float(reward.mean()) - baseline) / (index + 1)
        xs.append(x)
        all_answers.append(shown)
        lesson = torch.cat(xs), torch.cat(all_answers)
        fit(copy, lesson, epochs=epochs / ROUNDS, batch=batch, rate=rate, seed=seed + index)
    return torch.cat(xs), torch.cat(all_answers) if all_answers else torch.empty(0)


def _draws(liking: Tensor, arm: Tensor, fresh: Tensor, many: int, draw: torch.Generator) -> Tensor:
    """`many` rows that were not asked about, each of an arm drawn by how it is liked; they are then `fresh` no more."""
    chosen: list[int] = []
    for _ in range(min(many, int(fresh.sum()))):
        there = torch.zeros_like(liking, dtype=torch.bool).scatter(0, arm[fresh], True)
        one = int(torch.multinomial(liking.masked_fill(~there, -torch.inf).softmax(0), 1, generator=draw))
        chosen.append(int((fresh & (arm == one)).nonzero()[0]))  # the pool's order is a random one
        fresh[chosen[-1]] = False
    return torch.tensor(chosen, dtype=torch.long)


def _reward(answers: Tensor, before: Tensor, copied: Tensor) -> Tensor:
    """How sure answers `(B, K)` are, how unlike those `before` on average, and how unlike the copy's: `(B,)` in [0, 1].

    The copy's loss is its cross-entropy; its probabilities are kept above 1e-6.
    """
    top = answers.topk(2, dim=1).values
    parts = (
        top[:, 0] - top[:, 1],
        (answers - before.mean(0)).clamp_min(0).sum(1),
        -(answers * copied.clamp_min(1e-6).log()).sum(1),
    )
    scaled: list[Tensor] = []
    for part in parts:
        width = part.max() - part.min()
        scaled.append((part - part.min()) / (width if float(width) > 1e-12 else 1.0))
    return torch.stack(scaled).mean(0)
