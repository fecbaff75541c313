"""Numbers with intervals. `Estimate` is the only number a report accepts, and it can be computed again from evidence.

An estimate's `how` reads "<statistic> of <evidence>": `share of robust` is the share of true rows of the evidence
tensor `robust` with its exact Clopper-Pearson interval. `recompute` reads that sentence, so a stored estimate that its
stored evidence does not reproduce is found out.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from typing import cast

import numpy as np
import torch
from scipy import stats as scipy_stats
from scipy.optimize import brentq
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


def clopper_pearson(hits: float, n: float, level: float = LEVEL) -> tuple[float, float]:
    """The exact interval of a proportion (Clopper and Pearson, Biometrika 1934): coverage is at least `level`.

    Neither hits nor rows need be whole numbers.
    """
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


def ratio(pairs: Tensor, of: str, level: float = LEVEL) -> Estimate:
    """The share of rows with a true first entry over that with a true second one: `pairs` `(N, 2)`, 0 or 1.

    The interval is MOVER-R's (Donner and Zou, Statistical Methods in Medical Research 21, 2012) of the exact ones, with
    the correlation of the two entries; it is endless where the second share may be 0.
    """
    n, how = len(pairs), f"ratio of {of}"
    a, b = (share(column, of, level) for column in pairs.bool().unbind(1))
    if n == 0 or b.value == 0:
        return Estimate(math.nan, math.nan, math.nan, 0, level, how)
    spreads = math.sqrt(a.value * (1 - a.value) * b.value * (1 - b.value))
    both = float((pairs[:, 0].bool() & pairs[:, 1].bool()).double().mean())
    together = (both - a.value * b.value) / spreads if spreads > 0 else 0.0

    def end(a_end: float, b_end: float, way: int) -> float:
        middle = a.value * b.value - together * abs(a.value - a_end) * abs(b.value - b_end)
        below = b_end * (2 * b.value - b_end)
        if below <= 0:
            return 0.0 if way < 0 else math.inf
        inside = middle**2 - a_end * (2 * a.value - a_end) * below
        return (middle + way * math.sqrt(max(inside, 0.0))) / below

    value = a.value / b.value
    return Estimate(value, min(end(a.low, b.high, -1), value), max(end(a.high, b.low, 1), value), n, level, how)


def area(ranked: Tensor, of: str, level: float = LEVEL) -> Estimate:
    """The area under the ROC curve of `ranked` `(N, 2)`: scores, and 1 for a bad row, 0 for a clean one, -1 for none.

    It is how probably a bad row has a higher score than a clean one (a tie counts half). The interval is the exact one
    of a proportion of so many rows that it has the variance of DeLong, DeLong and Clarke-Pearson (Biometrics 44, 1988),
    for which bad and clean rows are both drawn (Korn and Graubard, Survey Methodology 24, 1998). They are at least as
    many as the rarer kind has (Birnbaum and Klose, 1957), and at most what they are where scores say nothing, because
    few rows show less variance than there is where hardly a score is out of order.
    """
    bad, clean = _sides(ranked)
    m, n = len(bad), len(clean)
    if min(m, n) == 0:
        return Estimate(math.nan, math.nan, math.nan, 0, level, f"area of {of}")
    above, below = placements(bad, clean), placements(clean, bad)
    value = float(above.mean())
    variance = float(above.var() / m + below.var() / n) if min(m, n) > 1 else math.inf
    worth = value * (1 - value) / variance if variance > 0 else 0.0
    worth = max(min(worth, 3 * m * n / (m + n + 1)), min(m, n))
    return Estimate(value, *clopper_pearson(value * worth, worth, level), m + n, level, f"area of {of}")


def _sides(ranked: Tensor) -> tuple[Tensor, Tensor]:
    """The scores of bad rows and of clean ones; a `ValueError` where one of them is NaN, which has no place."""
    score, truth = ranked[:, 0].double(), ranked[:, 1]
    bad, clean = score[truth == 1], score[truth == 0]
    lost = int(bad.isnan().sum() + clean.isnan().sum())
    if lost:
        raise ValueError(f"expected scores that can be ordered, got {lost} of {len(bad) + len(clean)} that are NaN")
    return bad, clean


def placements(own: Tensor, others: Tensor) -> Tensor:
    """For every score in `own` `(M,)` the share of `others` `(N,)` that are lower; ties count half: `(M,)`."""
    ordered, own = others.double().sort().values, own.double().contiguous()
    below = torch.searchsorted(ordered, own, right=False) + torch.searchsorted(ordered, own, right=True)
    return below.double() / (2 * len(ordered))


def rating(effect: Tensor, of: str, level: float = LEVEL) -> Estimate:
    """(max(0, a) - max(0, b) + 1) / 2 of the means a, b of `effect` `(N, 2)`, each entry -1, 0 or 1, or NaN for no row.

    a is what was to fall and did, b what was not to fall and did: 0.5 is useless, 1 perfect. The interval is MOVER's
    (Zou and Donner, Statistics in Medicine 27, 2008) of the two `difference`s, taken as independent.
    """
    kept = [difference(column[column.isfinite()], of, level) for column in effect.unbind(1)]
    n = min(one.n for one in kept)
    if n == 0:
        return Estimate(math.nan, math.nan, math.nan, 0, level, f"rating of {of}")
    (a, b), (a_low, b_low), (a_high, b_high) = (
        [max(0.0, end) for end in ends] for ends in zip(*((one.value, one.low, one.high) for one in kept), strict=True)
    )
    low = a - b - math.hypot(a - a_low, b_high - b)
    high = a - b + math.hypot(a_high - a, b - b_low)
    return Estimate((a - b + 1) / 2, max(0.0, (low + 1) / 2), min(1.0, (high + 1) / 2), n, level, f"rating of {of}")


def found(ranked: Tensor, of: str, level: float = LEVEL, *, alarms: float = 0.01) -> Estimate:
    """The share of bad rows that are found where a share `alarms` of clean ones is flagged; `ranked` as for `area`.

    The value is that of the lowest threshold which no more than this share of the clean rows measured is above. Its
    interval knows that the threshold is measured as well: two order statistics of the clean scores hold the true one
    between them, and each has the exact interval of the bad rows above it, every end with a fourth of what is left of
    `level`. With too few clean rows to see such a share at all the lower end is 0.
    """
    how = f"share found at {alarms:.2g} of {of}"
    bad, clean = _sides(ranked)
    clean, m, n = clean.sort(descending=True).values, len(bad), len(clean)
    if min(m, n) == 0:
        return Estimate(math.nan, math.nan, math.nan, 0, level, how)
    least, spare = math.floor(alarms * n + 1e-9), (1 - level) / 4
    value = int((bad > clean[least]).sum()) / m if least < n else 1.0
    strict = int(scipy_stats.binom.ppf(spare, n, alarms))
    loose = int(scipy_stats.binom.ppf(1 - spare, n, alarms)) + 1
    surely = int((bad > clean[strict - 1]).sum()) if strict else 0
    at_most = int((bad >= clean[loose - 1]).sum()) if loose <= n else m
    low, high = (clopper_pearson(hits, m, 1 - 2 * spare)[end] for end, hits in ((0, surely), (1, at_most)))
    return Estimate(value, min(low, value), max(high, value), m + n, level, how)


def trusted(ranked: Tensor, of: str, level: float = LEVEL, *, alarms: float = 0.01, prior: float = 0.1) -> Estimate:
    """The share of flagged rows that are bad, where a share `prior` of all rows is: see `found`, which it follows."""
    caught = found(ranked, of, level, alarms=alarms)
    ends = [prior * e / (prior * e + (1 - prior) * alarms) for e in (caught.value, caught.low, caught.high)]
    return Estimate(ends[0], ends[1], ends[2], caught.n, level, f"share true at {alarms:.2g} and {prior:.2g} of {of}")


def balanced(judged: Tensor, of: str, level: float = LEVEL) -> Estimate:
    """The mean of how many bad and how many clean rows are judged right; `judged` `(N, 2)` is guess and truth, 0 or 1.

    The interval is MOVER's (Zou and Donner, Statistics in Medicine 27, 2008) of the two exact ones.
    """
    right, truth = judged[:, 0] == judged[:, 1], judged[:, 1] == 1
    a, b = share(right[truth], of, level), share(right[~truth], of, level)
    if min(a.n, b.n) == 0:
        return Estimate(math.nan, math.nan, math.nan, 0, level, f"share balanced of {of}")
    value = (a.value + b.value) / 2
    low = value - math.hypot(a.value - a.low, b.value - b.low) / 2
    high = value + math.hypot(a.high - a.value, b.high - b.value) / 2
    return Estimate(value, max(low, 0.0), min(high, 1.0), a.n + b.n, level, f"share balanced of {of}")


def epsilon(canaries: Tensor, of: str, level: float = LEVEL) -> Estimate:
    """What epsilon is at least, by canaries of one training: `canaries` `(m, 3)` are scores, 1 for a canary that was
    held and 0 for one that was not, by fair coins, and the delta that epsilon is of. Nothing bounds it from above.

    The k highest scores are guessed to be held and the k lowest not to be, k = m / 2, m / 4, and so on down to 5, and
    so many right guesses are no likelier than what is left of `level` (Steinke, Nasr and Jagielski, "Privacy auditing
    with one (1) training run", NeurIPS 2023, https://arxiv.org/abs/2305.08846, theorem 5.2), shared between all k
    (Bonferroni), so that the best of them may be taken. It holds for any training, and however canaries interact.
    """
    m, delta = len(canaries), float(canaries[0, 2]) if len(canaries) else 0.0
    held = (canaries[canaries[:, 0].argsort(descending=True, stable=True), 1] == 1).cpu().numpy()
    tried = [m // 2**halved for halved in range(1, 64) if m // 2**halved >= 5]
    if not tried:
        return Estimate(math.nan, math.nan, math.nan, 0, level, f"epsilon of {of}")
    rights = [int(held[:k].sum()) + int((~held[m - k :]).sum()) for k in tried]
    spare = (1 - level) / len(tried)
    value = max(_refuted(m, 2 * k, right, delta, spare) for k, right in zip(tried, rights, strict=True))
    return Estimate(value, value, math.inf, m, level, f"epsilon of {of}")


def _refuted(m: int, guesses: int, right: int, delta: float, spare: float) -> float:
    """The greatest epsilon at which so many right guesses are no likelier than `spare`; 0 if there is none."""
    fewer = np.arange(right)[::-1]

    def likely(bound: float) -> float:
        each = 1 / (1 + math.exp(-bound))
        below = scipy_stats.binom.pmf(fewer, guesses, each).cumsum() / np.arange(1, right + 1)
        return float(scipy_stats.binom.sf(right - 1, guesses, each)) + 2 * m * delta * float(below.max(initial=0))

    if likely(0.0) > spare:
        return 0.0
    low, high = 0.0, 1.0
    while likely(high) <= spare:
        low, high = high, 2 * high
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if likely(middle) <= spare else (low, middle)
    return low


def reach(canaries: Tensor, of: str, level: float = LEVEL) -> Estimate:
    """The greatest `epsilon` that canaries can show: had each the score that its coin says. It bounds nothing that was
    measured, and a promise above it stands whatever is.
    """
    most = epsilon(torch.cat([canaries[:, 1:2], canaries[:, 1:]], 1), of, level)
    return Estimate(most.low, most.low, most.low, most.n, level, f"reach of {of}")


def gaussian_epsilon(canaries: Tensor, of: str, level: float = LEVEL) -> Estimate:
    """What epsilon is of a Gaussian mechanism whose canaries are guessed as often; `canaries` as for `epsilon`.

    All are guessed, half of them held: of one canary no guess is right more often than Phi(mu / 2), mu being the
    mechanism's (Dong, Roth and Su, "Gaussian differential privacy", JRSS B 84, 2022). It bounds mu from below where
    canaries do not touch each other; nothing bounds it from above, as the coins seldom hold just half of them, and some
    guesses then have to be wrong. For other mechanisms it is no bound: that is what `epsilon` is for.
    """
    m, how = len(canaries), f"gaussian epsilon of {of}"
    if m < 2:
        return Estimate(math.nan, math.nan, math.nan, 0, level, how)
    order = canaries[:, 0].argsort(descending=True, stable=True)
    guess = torch.zeros(m, dtype=torch.bool, device=canaries.device)
    guess[order[: m // 2]] = True
    right, delta = int((guess == (canaries[:, 1] == 1)).sum()), float(canaries[0, 2])
    low = clopper_pearson(right, m, level)[0]
    return Estimate(_of_gaussian(right / m, delta), _of_gaussian(low, delta), math.inf, m, level, how)


def _of_gaussian(right: float, delta: float) -> float:
    """The epsilon at `delta` of a Gaussian mechanism whose output is guessed right with this probability."""
    if right <= 0.5 or right >= 1 or delta <= 0:
        return 0.0 if right <= 0.5 else math.inf
    mu, normal = 2 * float(scipy_stats.norm.ppf(right)), scipy_stats.norm

    def beyond(bound: float) -> float:
        a, b = mu / 2 - bound / mu, -mu / 2 - bound / mu
        return float(normal.cdf(a)) - math.exp(bound + float(normal.logcdf(b))) - delta

    most = mu * mu / 2 - mu * float(normal.ppf(delta)) + 1  # the first term alone is below delta there
    return float(cast(float, brentq(beyond, 0.0, most))) if beyond(0.0) > 0 else 0.0


STATISTICS: Mapping[str, Callable[[Tensor, str, float], Estimate]] = {
    "share": share,
    "mean": mean,
    "median": median,
    "difference": difference,
    "ratio": ratio,
    "area": area,
    "rating": rating,
    "share found at 0.01": partial(found, alarms=0.01),
    "share found at 0.001": partial(found, alarms=0.001),
    "share true at 0.01 and 0.1": partial(trusted, alarms=0.01, prior=0.1),
    "share balanced": balanced,
    "epsilon": epsilon,
    "reach": reach,
    "gaussian epsilon": gaussian_epsilon,
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
