"""LiRA: a likelihood ratio per row, of models that learnt from it and models that did not.

Carlini, Chien, Nasr, Song, Terzis and Tramer, "Membership inference attacks from first principles", S&P 2022,
https://arxiv.org/abs/2112.03570.

Offline it is one-sided, as in the paper: how far above the models without the row the target lies. (The authors' code
and several others score both sides alike there, which counts rows that the target knows worse than other models as
members.) Means, as in the paper's algorithm; its code takes medians.

Differs from the paper: by default each row's variance is shrunk towards that of a typical row, the more the less the
rows' variances are found to differ beyond chance (Smyth, "Linear models and empirical Bayes methods for assessing
differential expression in microarray experiments", SAGMB 3, 2004). The paper's two rules, one variance for all rows and
one for each by itself, are `fixed` and `per-example`: the one ignores that rows differ, the other is noise with few
shadows.

Tags: atlas:AML.T0024.000, nist-ai-100-2:NISTAML.033, owasp-ml:ML04.
"""

from __future__ import annotations

import math
from typing import Literal, cast

import torch
from scipy.optimize import brentq
from scipy.special import digamma, polygamma
from torch import Tensor

from buckler.kinds import Membership
from buckler.privacy._shadows import Shadows, answers_of, confidence
from buckler.target import ScoreOracle

FLOOR = 1e-6
"""The least variance, in squared log-odds: models that agree to the last digit are not infinitely sure."""
MOST = 1e6
"""Degrees of freedom that are as good as endless."""
Variance = Literal["shrunk", "per-example", "fixed"]


def lira(
    oracle: ScoreOracle,
    x: Tensor,
    y: Tensor,
    *,
    shadows: Shadows,
    online: bool = True,
    variance: Variance = "shrunk",
) -> Membership:
    """Score rows by how much likelier the target's confidence is of a model that learnt from the row.

    `x` `(B, ...)` in [0, 1] and `y` `(B,)` are the rows that the `shadows` were asked about, in their order; each is
    asked about in as many views as there. Online compares shadows with and without the row; offline (`online=False`)
    uses only those without. Returns float64 `(B,)`, averaged over views. Raises `ValueError` for other rows, or fewer
    than two shadows on a side that is used.
    """
    shadows.fit(x)
    target = confidence(answers_of(oracle, x, shadows.views), y.cpu())
    known = shadows.confidences()
    mean, spread = _normal(known, ~shadows.held, variance)
    if not online:
        return torch.special.log_ndtr((target - mean) / spread).mean(1)
    mean_in, spread_in = _normal(known, shadows.held, variance)
    return (_log_density(target, mean_in, spread_in) - _log_density(target, mean, spread)).mean(1)


def _normal(known: Tensor, among: Tensor, variance: Variance) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation, each `(N, Q)`, of `known` `(S, N, Q)` over the models in `among` `(S, N)`."""
    weight = among[:, :, None].double()
    many = weight.sum(0)
    if bool((many < 2).any()):
        raise ValueError(
            f"expected two shadows or more with each row and without it, got {int(many.min())}: train more"
        )
    mean = (weight * known).sum(0) / many
    squares, freedom = (weight * (known - mean).square()).sum(0), many - 1
    if variance == "per-example":
        found = squares / freedom
    elif variance == "fixed":
        found = (squares.sum(0) / freedom.sum(0)).expand_as(squares)
    else:
        priors = [_prior(one / freedom[:, 0], float(freedom.mean())) for one in squares.unbind(1)]
        worth, typical = torch.tensor(priors, dtype=torch.double).unbind(1)
        found = (squares + worth * typical) / (freedom + worth)
    return mean, found.clamp_min(FLOOR).sqrt()


def _prior(found: Tensor, freedom: float) -> tuple[float, float]:
    """What variances `found` `(N,)`, each with so many degrees of `freedom`, say of variances: how many more degrees
    a typical one is worth, and what it is.

    Both by the moments of the logarithm, whose spread beyond what chance explains is that of the rows.
    """
    logs = found.clamp_min(FLOOR).log()
    beyond = float(logs.var()) - float(polygamma(1, freedom / 2)) if len(logs) > 1 else 0.0
    worth = MOST
    if beyond > float(polygamma(1, MOST / 2)):
        worth = 2 * float(cast(float, brentq(_less_trigamma, 1e-6, MOST, args=(beyond,))))
    shift = digamma(worth / 2) - math.log(worth / 2) - digamma(freedom / 2) + math.log(freedom / 2)
    return worth, math.exp(float(logs.mean()) + float(shift))


def _less_trigamma(half: float, value: float) -> float:
    return float(polygamma(1, half)) - value


def _log_density(value: Tensor, mean: Tensor, spread: Tensor) -> Tensor:
    """Of a normal distribution, up to a constant."""
    return -0.5 * ((value - mean) / spread).square() - spread.log()
