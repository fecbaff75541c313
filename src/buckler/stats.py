"""Numbers with intervals. `Estimate` is the only number a report accepts, and it can be computed again from evidence.

An estimate's `how` reads "<statistic> of <evidence>": `share of robust` is the share of true rows of the evidence
tensor `robust` with its exact Clopper-Pearson interval. `recompute` reads that sentence, so a stored estimate that its
stored evidence does not reproduce is found out.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass

import numpy as np
import torch
from scipy import stats as scipy_stats
from torch import Tensor

LEVEL = 0.95


@dataclass(frozen=True)
class Estimate:
    """A value, its interval at `level`, the number of rows (or runs) behind it, and how it was computed."""

    value: float
    low: float
    high: float
    n: int
    level: float
    how: str

    def __post_init__(self) -> None:
        if self.n > 0 and not self.low <= self.value <= self.high:
            raise ValueError(f"expected low <= value <= high, got {self.low} <= {self.value} <= {self.high}")

    def __str__(self) -> str:
        return f"{self.value:.3g} [{self.low:.3g}, {self.high:.3g}], n = {self.n}"

    def record(self) -> dict[str, object]:
        """As JSON can hold it: an infinite or undefined number is written as the text `inf` or `nan`."""
        return {key: str(v) if isinstance(v, float) and not math.isfinite(v) else v for key, v in asdict(self).items()}

    @classmethod
    def load(cls, record: Mapping[str, object]) -> Estimate:
        value, low, high, level = (float(str(record[key])) for key in ("value", "low", "high", "level"))
        return cls(value, low, high, int(str(record["n"])), level, str(record["how"]))


def clopper_pearson(hits: int, n: int, level: float = LEVEL) -> tuple[float, float]:
    """The exact interval of a proportion (Clopper and Pearson, Biometrika 1934): coverage is at least `level`."""
    tail = (1 - level) / 2
    low = float(scipy_stats.beta.ppf(tail, hits, n - hits + 1)) if hits > 0 else 0.0
    high = float(scipy_stats.beta.ppf(1 - tail, hits + 1, n - hits)) if hits < n else 1.0
    return low, high


def share(flags: Tensor, of: str, level: float = LEVEL) -> Estimate:
    """The share of true rows in `flags` `(N,)`, with its exact interval."""
    n, hits = flags.numel(), int(flags.sum())
    if n == 0:
        return Estimate(math.nan, math.nan, math.nan, 0, level, f"share of {of}")
    return Estimate(hits / n, *clopper_pearson(hits, n, level), n, level, f"share of {of}")


def mean(values: Tensor, of: str, level: float = LEVEL) -> Estimate:
    """The mean of the finite entries of `values` `(N,)` with Student's t interval (infinite for one entry)."""
    array = values.double()[values.isfinite()].cpu().numpy()
    n = len(array)
    if n == 0:
        return Estimate(math.nan, math.nan, math.nan, 0, level, f"mean of {of}")
    centre = float(array.mean())
    half = math.inf if n < 2 else float(scipy_stats.t.ppf((1 + level) / 2, n - 1)) * float(array.std(ddof=1)) / n**0.5
    return Estimate(centre, centre - half, centre + half, n, level, f"mean of {of}")


def median(values: Tensor, of: str, level: float = LEVEL) -> Estimate:
    """The median of `values` `(N,)` (infinite entries count) with its exact order-statistic interval."""
    array = np.sort(values.double().cpu().numpy())
    n = len(array)
    if n == 0:
        return Estimate(math.nan, math.nan, math.nan, 0, level, f"median of {of}")
    # P(X_(k+1) <= median <= X_(n-k)) >= level for the largest k whose binomial tail stays within (1 - level) / 2
    k = int(scipy_stats.binom.ppf((1 - level) / 2, n, 0.5))
    low, high = (-math.inf, math.inf) if k == 0 else (float(array[k - 1]), float(array[n - k]))
    middle = float(array[(n - 1) // 2]) if n % 2 else (float(array[n // 2 - 1]) + float(array[n // 2])) / 2
    return Estimate(middle, low, high, n, level, f"median of {of}")


def difference(flags: Tensor, of: str, level: float = LEVEL) -> Estimate:
    """The mean of paired differences, each -1, 0 or 1 (a row that a defence lost, kept, won): `(N,)`.

    The interval is a hybrid of the exact ones of the shares won and lost (Newcombe, Statistics in Medicine 17, 1998;
    Zou and Donner, 27, 2008), whose correlation counts: a row that is won is not lost. It stays inside [-1, 1] and does
    not collapse when no row differs; summed over every outcome it covers at least 95 % (a test holds it to that).
    """
    n = flags.numel()
    if n == 0:
        return Estimate(math.nan, math.nan, math.nan, 0, level, f"difference of {of}")
    won, lost = int((flags > 0).sum()), int((flags < 0).sum())
    won_low, won_high = clopper_pearson(won, n, level)
    lost_low, lost_high = clopper_pearson(lost, n, level)
    value = (won - lost) / n
    together = math.sqrt(won * lost / ((n - won) * (n - lost))) if won < n and lost < n else 0.0

    def reach(a: float, b: float) -> float:
        return math.sqrt(a * a + b * b + 2 * together * a * b)

    low = value - reach(won / n - won_low, lost_high - lost / n)
    high = value + reach(won_high - won / n, lost / n - lost_low)
    return Estimate(value, max(low, -1.0), min(high, 1.0), n, level, f"difference of {of}")


STATISTICS: Mapping[str, Callable[[Tensor, str, float], Estimate]] = {
    "share": share,
    "mean": mean,
    "median": median,
    "difference": difference,
}


def recompute(estimate: Estimate, evidence: Mapping[str, Tensor]) -> Estimate:
    """The same estimate computed again from `evidence`; an unknown statistic or evidence is a `ValueError`."""
    statistic, _, name = estimate.how.partition(" of ")
    if statistic not in STATISTICS or name not in evidence:
        raise ValueError(f"cannot recompute {estimate.how!r}: evidence has {', '.join(sorted(evidence)) or 'nothing'}")
    return STATISTICS[statistic](evidence[name], name, estimate.level)


def agree(a: Estimate, b: Estimate) -> bool:
    """Whether two estimates say the same, up to rounding of the last digits."""

    def close(p: float, q: float) -> bool:
        return (math.isnan(p) and math.isnan(q)) or math.isclose(p, q, rel_tol=1e-9, abs_tol=1e-12)

    return a.n == b.n and a.how == b.how and all(close(getattr(a, k), getattr(b, k)) for k in ("value", "low", "high"))


def beats(worse: int, better: int, level: float = LEVEL) -> bool:
    """Whether `better` of `worse + better` discordant pairs is more than chance (exact one-sided sign test)."""
    n = worse + better
    return n > 0 and float(scipy_stats.binom.sf(better - 1, n, 0.5)) < 1 - level


def rows(values: Tensor) -> Tensor:
    """Evidence as it is stored: on the CPU, detached, contiguous."""
    return values.detach().to("cpu", torch.float32 if values.is_floating_point() else values.dtype).contiguous()
