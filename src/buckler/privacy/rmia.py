"""RMIA: how much more a row gained from the target than other rows did.

Zarifzadeh, Liu and Shokri, "Low-cost high-power membership inference attacks", ICML 2024,
https://arxiv.org/abs/2312.03262.

Differs from the paper: `gamma` is 1, not 2, with which every row that gained at all has a place among the others; what
corrects for shadows that hold a row is found by attacks on several of the shadows, not on one; the population that a
row is compared with are the other rows asked about; probabilities are those of a softmax at `temperature`, not of its
Taylor form; with several views the probabilities are averaged, where the paper takes a vote; and ratios are sorted
once, so that N rows against a population of Z cost (N + Z) log Z, not N Z. With one population for all rows the score
orders them as the ratio itself does: what the population adds is a scale that means the same for every target. Rows of
one score, which most are with a greater `gamma` where the target is hardly surer than models in general, are ordered by
the ratio, by less than a row of the population counts.

Tags: atlas:AML.T0024.000, nist-ai-100-2:NISTAML.033, owasp-ml:ML04.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from buckler import stats
from buckler.kinds import Membership
from buckler.privacy._shadows import Shadows, answers_of
from buckler.target import ScoreOracle

LEAST = 1e-30
TRIED, AMONG = 4, tuple(step / 10 for step in range(11))
"""On how many shadows the correction is tried that is used offline, and which."""


def rmia(
    oracle: ScoreOracle,
    x: Tensor,
    y: Tensor,
    *,
    shadows: Shadows,
    online: bool = True,
    gamma: float = 1.0,
    offline: float | None = None,
    temperature: float = 2.0,
) -> Membership:
    """Score rows by the share of rows whose likelihood ratio, `gamma` times, theirs is at least.

    `x` `(B, ...)` in [0, 1] and `y` `(B,)` are the rows that the `shadows` were asked about, in their order. The ratio
    of a row is the target's probability of its label over that of models in general: online the mean over shadows with
    the row and without it, offline only those without, corrected by `offline` (the paper's a, in [0, 1]); if it is not
    given, by what tells best who some of the shadows hold, by the others. Returns float64 `(B,)` in [0, 1]. Raises
    `ValueError` for other rows, no shadow on a side that is used, or a `gamma` below 1.
    """
    shadows.fit(x)
    if not (gamma >= 1 and temperature > 0 and (offline is None or 0 <= offline <= 1)):
        raise ValueError(
            f"expected gamma of 1 or more, a temperature above 0 and offline in [0, 1], got {gamma}, {temperature} and "
            f"{offline}"
        )
    target = _probability(answers_of(oracle, x, shadows.views), y.cpu(), temperature)
    known = torch.stack([_probability(answers, shadows.labels, temperature) for answers in shadows.answers])
    general = _mean(known, ~shadows.held)
    if online:
        general = (general + _mean(known, shadows.held)) / 2
    else:
        offline = _tuned(known, shadows.held) if offline is None else offline
        general = ((1 + offline) * general + (1 - offline)) / 2
    ratio = target / general.clamp_min(LEAST)
    return _beaten(ratio, ratio, gamma) + ratio / (1 + ratio) / (2 * len(ratio))


def _probability(answers: Tensor, y: Tensor, temperature: float) -> Tensor:
    """Of the label, averaged over views: `(N,)` float64, out of log-probabilities `(N, Q, K)`."""
    soft = (answers.double() / temperature).softmax(-1)
    own = F.one_hot(y, soft.shape[-1]).bool()[:, None].expand(soft.shape)
    return soft[own].view(soft.shape[:-1]).mean(1)


def _tuned(known: Tensor, held: Tensor) -> float:
    """The correction with which the other shadows tell best who each of the first few holds, by the mean area."""
    told = dict.fromkeys(AMONG, 0.0)
    for target in range(min(TRIED, len(held))):
        among = ~held
        among[target] = False
        sound = among.any(0)
        member = held[target][sound]
        if bool(member.all()) or not bool(member.any()):
            continue
        out = _mean(known[:, sound], among[:, sound])
        for offline in AMONG:
            ratio = known[target][sound] / ((1 + offline) * out + (1 - offline)).clamp_min(LEAST)
            told[offline] += stats.area(torch.stack([ratio, member.double()], 1), "ratio").value
    return max(told, key=told.__getitem__)


def _mean(known: Tensor, among: Tensor) -> Tensor:
    """Of `known` `(S, N)` over the models in `among` `(S, N)`: `(N,)`."""
    many = among.sum(0)
    if bool((many == 0).any()):
        raise ValueError("expected a shadow with each row and one without it, got a row without: train more")
    return (known * among).sum(0) / many


def _beaten(ratio: Tensor, others: Tensor, gamma: float) -> Tensor:
    """The share of `others` `(Z,)` that `gamma` times are no more than each of `ratio` `(N,)`: `(N,)`."""
    return torch.searchsorted((gamma * others).sort().values, ratio, right=True).double() / len(others)
