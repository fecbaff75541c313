"""What noise is worth: privacy loss distributions, composed over the steps of a training.

Koskela, Jaelkoe and Honkela, "Computing tight differential privacy guarantees using FFT", AISTATS 2020,
https://arxiv.org/abs/1906.03049; by Google's library, https://github.com/google/differential-privacy. Every number is
an upper bound, whatever the grid that it is computed on; a finer grid is closer. Neighbours differ by one row added or
removed.
"""

from __future__ import annotations

import math
from functools import cache
from importlib import import_module
from types import ModuleType
from typing import cast

from scipy.optimize import brentq

GRID = 1e-3
"""In units of privacy loss; finer in proportion where less than 1 may be spent."""


@cache
def spent(noise: float, share: float, steps: int, delta: float, grid: float = GRID) -> float:
    """The epsilon of so many `steps`, each of a Gaussian mechanism with noise multiplier `noise` on rows of which each
    is taken with probability `share`."""
    if noise == 0:
        return math.inf
    accounting, pld = needed("dp_accounting", "dp-accounting"), needed("dp_accounting.pld", "dp-accounting")
    step = accounting.PoissonSampledDpEvent(share, accounting.GaussianDpEvent(noise))
    accountant = pld.PLDAccountant(value_discretization_interval=grid)
    return float(accountant.compose(accounting.SelfComposedDpEvent(step, steps)).get_epsilon(delta))


@cache
def calibrated(epsilon: float, delta: float, share: float, steps: int) -> tuple[float, float]:
    """The least noise multiplier, to a thousandth, that keeps `steps` within `epsilon`; and what is spent with it."""

    def over(noise: float) -> float:
        return spent(noise, share, steps, delta, GRID * min(epsilon, 1.0)) / epsilon

    def far(noise: float) -> float:
        return math.log(max(over(noise), 1e-9))

    low = high = 1.0
    most = spent(high, share, steps, delta, GRID)
    while most > epsilon:  # on a grid that is as coarse as what is spent allows: of much it takes long on a fine one
        low, high = high, 2 * high
        most = spent(high, share, steps, delta, GRID * min(most, 1.0))
    while over(low) <= 1:
        low, high = low / 2, low
    noise = cast(float, brentq(far, low, high, xtol=5e-4 * low))
    while over(noise) > 1:
        noise *= 1.0005
    return noise, over(noise) * epsilon


def usual_delta(rows: int) -> float:
    """The delta that is promised of so many rows where none is named: N^-1.1."""
    return math.exp(-1.1 * math.log(max(rows, 2)))


def needed(module: str, package: str) -> ModuleType:
    """`module`, imported only when it is asked for; a `ValueError` that says how to get it if it is not there."""
    try:
        return import_module(module)
    except ImportError:
        raise ValueError(
            f"expected {package}, which differential privacy needs, got none installed: pip install 'buckler[dp]'"
        ) from None
