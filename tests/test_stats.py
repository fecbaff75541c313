from __future__ import annotations

import math

import pytest
import torch
from scipy import stats as scipy_stats

from buckler.stats import (
    STATISTICS,
    Estimate,
    agree,
    beats,
    clopper_pearson,
    difference,
    mean,
    median,
    recompute,
    share,
)


@pytest.mark.parametrize(("hits", "n"), [(0, 1), (0, 20), (7, 20), (20, 20), (199, 200), (1, 10_000)])
def test_clopper_pearson_is_scipys_exact_interval(hits: int, n: int) -> None:
    expected = scipy_stats.binomtest(hits, n).proportion_ci(0.95, "exact")
    assert clopper_pearson(hits, n) == pytest.approx((expected.low, expected.high), abs=1e-12)


@pytest.mark.parametrize("p", [0.02, 0.5, 0.9])
def test_share_covers_at_least_its_level(p: float) -> None:
    # exactly, by summing over every outcome: no simulation to be lucky with
    n = 60
    covered = sum(
        scipy_stats.binom.pmf(k, n, p)
        for k in range(n + 1)
        if (e := share(torch.arange(n) < k, "x")).low <= p <= e.high
    )
    assert covered >= 0.95


def test_median_interval_covers_and_takes_infinite_rows() -> None:
    values = torch.tensor([0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, math.inf, math.inf])
    estimate = median(values, "size")
    assert (estimate.value, estimate.low) == (4.0, 1.0)
    assert estimate.high == math.inf
    draw = torch.Generator().manual_seed(0)
    hits = sum(e.low <= 0 <= e.high for e in (median(torch.randn(30, generator=draw), "x") for _ in range(400)))
    assert hits / 400 >= 0.93


def test_mean_interval_is_students() -> None:
    values = torch.tensor([1.0, 2.0, 4.0, 9.0])
    expected = scipy_stats.ttest_1samp(values.numpy(), 0).confidence_interval(0.95)
    estimate = mean(values, "x")
    assert (estimate.low, estimate.high) == pytest.approx((expected.low, expected.high), rel=1e-6)
    assert mean(torch.tensor([1.0]), "x").high == math.inf


def test_difference_covers_at_least_its_level() -> None:
    # exactly, by summing over every outcome, also where many rows are won and as many lost
    n = 20
    outcomes = [(w, k) for w in range(n + 1) for k in range(n + 1 - w)]
    made = {(w, k): difference(torch.tensor([1] * w + [-1] * k + [0] * (n - w - k)), "x") for w, k in outcomes}
    for won, lost in [(0.1, 0.1), (0.3, 0.02), (0.0, 0.05), (0.5, 0.5), (0.45, 0.45), (0.4, 0.3), (0.8, 0.2)]:
        covered = sum(
            math.comb(n, w) * math.comb(n - w, k) * won**w * lost**k * max(0.0, 1 - won - lost) ** (n - w - k)
            for w, k in outcomes
            if made[w, k].low - 1e-12 <= won - lost <= made[w, k].high + 1e-12
        )
        assert covered >= 0.95


def test_no_difference_is_not_certainty() -> None:
    estimate = difference(torch.zeros(50, dtype=torch.int8), "x")
    assert estimate.low < -0.01 < 0.01 < estimate.high


@pytest.mark.parametrize("name", STATISTICS)
def test_every_statistic_is_recomputed_and_survives_its_record(name: str) -> None:
    tensor = {"share": torch.tensor([True, False, True])}.get(name, torch.tensor([1.0, -1.0, 0.0]))
    estimate = STATISTICS[name](tensor, "x", 0.95)
    assert agree(recompute(estimate, {"x": tensor}), estimate)
    assert agree(Estimate.load(estimate.record()), estimate)
    assert not agree(recompute(estimate, {"x": tensor[:2]}), estimate)
    assert math.isnan(STATISTICS[name](tensor[:0], "x", 0.95).value)


def test_what_cannot_be_recomputed_is_an_error() -> None:
    with pytest.raises(ValueError, match="cannot recompute"):
        recompute(share(torch.tensor([True]), "gone"), {})
    with pytest.raises(ValueError, match="low <= value <= high"):
        Estimate(0.5, 0.6, 0.7, 10, 0.95, "share of x")


def test_sign_test() -> None:
    assert beats(0, 5)
    assert not beats(0, 4)
    assert not beats(10, 10)
    assert not beats(0, 0)
