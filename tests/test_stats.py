from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from scipy import stats as scipy_stats
from torch import Tensor

from buckler.stats import (
    STATISTICS,
    Estimate,
    agree,
    area,
    balanced,
    beats,
    clopper_pearson,
    difference,
    found,
    mean,
    median,
    placements,
    rating,
    ratio,
    recompute,
    share,
    trusted,
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


@pytest.mark.parametrize(
    ("rows", "a", "b", "both"), [(60, 0.5, 0.9, 0.48), (200, 0.9, 0.97, 0.89), (40, 0.3, 0.3, 0.05)]
)
def test_ratio_covers_at_least_its_level(rows: int, a: float, b: float, both: float) -> None:
    draws, hits = torch.Generator().manual_seed(0), 0
    chances = torch.tensor([both, a - both, b - both, 1 - a - b + both])
    for _ in range(300):
        drawn = torch.multinomial(chances, rows, replacement=True, generator=draws)
        pairs = torch.stack([drawn <= 1, (drawn == 0) | (drawn == 2)], 1)
        found = ratio(pairs, "x")
        hits += found.low <= a / b <= found.high
        assert found.value == pytest.approx(float(pairs[:, 0].double().mean() / pairs[:, 1].double().mean()))
    assert hits / 300 >= 0.93
    assert ratio(torch.tensor([[1, 0]] * 9 + [[0, 1]]), "x").high > 100


def test_no_difference_is_not_certainty() -> None:
    estimate = difference(torch.zeros(50, dtype=torch.int8), "x")
    assert estimate.low < -0.01 < 0.01 < estimate.high


def test_placements_and_area_are_the_naive_comparison() -> None:
    draws = torch.Generator().manual_seed(0)
    score, bad = torch.randint(0, 9, (40,), generator=draws).float(), torch.rand(40, generator=draws) < 0.4
    clean = score[~bad]
    naive = [float(((clean < s).float() + 0.5 * (clean == s).float()).mean()) for s in score[bad]]
    assert placements(score[bad], clean).tolist() == pytest.approx(naive, abs=1e-6)
    neither = torch.tensor([[100.0, -1.0]]).expand(7, 2)
    found = area(torch.cat([torch.stack([score, bad.float()], 1), neither]), "x")
    assert found.value == pytest.approx(sum(naive) / len(naive))
    assert found.n == 40


@pytest.mark.parametrize(("bad", "clean"), [(20, 400), (400, 20), (60, 60)])
@pytest.mark.parametrize("truth", [0.5, 0.9, 0.99])
def test_the_area_covers_its_level(bad: int, clean: int, truth: float) -> None:
    # exponential scores: P(bad > clean) is the share of the bad ones' mean in the sum of both means
    draws, rounds, hits = torch.Generator().manual_seed(1), 300, 0
    kinds = torch.cat([torch.ones(bad), torch.zeros(clean)])
    for _ in range(rounds):
        scores = torch.empty(bad + clean).exponential_(generator=draws)
        scores[:bad] *= truth / (1 - truth)
        found = area(torch.stack([scores, kinds], 1), "x")
        hits += found.low <= truth <= found.high
    assert hits / rounds >= 0.93


def test_a_perfect_area_is_as_sure_as_its_rarer_kind() -> None:
    ranked = torch.tensor([[1.0, 1.0]] * 30 + [[0.0, 0.0]] * 500)
    found = area(ranked, "x")
    assert (found.value, found.high) == (1.0, 1.0)
    assert found.low == pytest.approx(0.025 ** (1 / 30))
    assert area(ranked[29:], "x").low == pytest.approx(0.025)
    level = area(torch.cat([torch.ones(9, 1), torch.arange(9.0)[:, None] % 2], 1), "x")
    assert level.low < 0.3 < level.value == 0.5 < 0.7 < level.high, "scores that say nothing are not certain of it"


def test_a_rating_weighs_what_fell_and_covers_its_level() -> None:
    fell = torch.full((100, 2), math.nan)
    fell[:60, 0] = torch.tensor([1.0] * 45 + [0.0] * 15)
    fell[:, 1] = torch.tensor([1.0] * 10 + [-1.0] * 5 + [0.0] * 85)
    found = rating(fell, "x")
    assert found.value == pytest.approx((0.75 - 0.05 + 1) / 2)
    assert found.n == 60
    assert rating(-fell, "x").value == pytest.approx(0.5), "what rises instead weighs nothing"
    draws, hits = torch.Generator().manual_seed(0), 0
    for _ in range(300):
        drawn = (torch.rand(80, 2, generator=draws) < torch.tensor([0.7, 0.1])).float()
        one = rating(drawn, "x")
        hits += one.low <= 0.8 <= one.high
    assert hits / 300 >= 0.93
    assert one.high - one.low < 0.2


@pytest.mark.parametrize("name", STATISTICS)
def test_every_statistic_is_recomputed_and_survives_its_record(name: str) -> None:
    pairs = torch.tensor([[1.0, 1.0], [0.5, 0.0], [0.0, 0.0]])
    given = {"share": torch.tensor([True, False, True]), "area": pairs, "rating": pairs, "ratio": pairs}
    given |= dict.fromkeys(
        ("epsilon", "reach", "gaussian epsilon"), torch.tensor([[k, k % 2, 1e-5] for k in range(12)])
    )
    tensor = given.get(name, pairs if name.startswith("share ") else torch.tensor([1.0, -1.0, 0.0]))
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


def _ranked(bad: torch.Tensor, clean: torch.Tensor) -> torch.Tensor:
    truth = torch.cat([torch.ones(len(bad)), torch.zeros(len(clean))])
    return torch.stack([torch.cat([bad, clean]), truth], 1)


@pytest.mark.parametrize("statistic", [area, found])
def test_scores_that_are_no_numbers_have_no_place(statistic: Callable[[Tensor, str], Estimate]) -> None:
    scores = torch.tensor([[math.nan, 1.0], [0.5, 0.0], [math.nan, -1.0], [math.inf, 1.0]])
    with pytest.raises(ValueError, match="expected scores that can be ordered, got 1 of 3 that are NaN"):
        statistic(scores, "x")
    assert statistic(scores[1:], "x").n == 2


def test_found_flags_no_more_clean_rows_than_it_may() -> None:
    clean = torch.arange(200.0)
    assert found(_ranked(torch.tensor([197.0, 198.5, 500.0]), clean), "x").value == pytest.approx(2 / 3)
    assert found(_ranked(torch.tensor([198.0, 197.0]), clean), "x").value == 0.5  # above the third, not beside it
    assert found(_ranked(torch.tensor([198.5, 199.5]), clean), "x", alarms=0.001).value == 0.5
    assert found(_ranked(torch.ones(5), torch.ones(50)), "x").value == 0.0  # of one score none is flagged
    assert found(_ranked(torch.ones(5), torch.zeros(50)), "x", alarms=1.0).value == 1.0


@pytest.mark.parametrize(
    ("gap", "alarms", "rows"), [(0.0, 0.01, 300), (1.5, 0.01, 300), (1.5, 0.001, 300), (2.0, 0.1, 40)]
)
def test_found_covers_what_is_found_at_the_true_threshold(gap: float, alarms: float, rows: int) -> None:
    normal = scipy_stats.norm
    truth = float(normal.sf(normal.isf(alarms) - gap))
    draw = torch.Generator().manual_seed(0)
    covered = 0
    for _ in range(300):
        ranked = _ranked(torch.randn(rows, generator=draw) + gap, torch.randn(rows, generator=draw))
        estimate = found(ranked, "x", alarms=alarms)
        covered += estimate.low <= truth <= estimate.high
    assert covered / 300 >= 0.95


def test_an_interval_that_takes_the_threshold_for_known_would_not_cover() -> None:
    """Why `found` does not: the exact interval of the bad rows above the measured threshold alone is too narrow."""
    truth = float(scipy_stats.norm.sf(scipy_stats.norm.isf(0.01) - 1.5))
    draw = torch.Generator().manual_seed(0)
    covered = 0
    for _ in range(300):
        ranked = _ranked(torch.randn(300, generator=draw) + 1.5, torch.randn(300, generator=draw))
        hits = round(found(ranked, "x").value * 300)
        low, high = clopper_pearson(hits, 300)
        covered += low <= truth <= high
    assert covered / 300 < 0.8


def test_trusted_is_bayes_rule_of_found() -> None:
    ranked = _ranked(torch.cat([torch.full((30,), 9.0), torch.zeros(70)]), torch.linspace(1, 2, 1000))
    estimate = trusted(ranked, "x", alarms=0.01, prior=0.1)
    assert estimate.value == pytest.approx(0.1 * 0.3 / (0.1 * 0.3 + 0.9 * 0.01))
    assert estimate.low < estimate.value < estimate.high < 1


def test_balanced_weighs_both_kinds_alike_and_covers() -> None:
    judged = torch.tensor([[1.0, 1.0]] * 9 + [[0.0, 1.0]] + [[0.0, 0.0]] * 2 + [[1.0, 0.0]] * 2)
    estimate = balanced(judged, "x")
    assert estimate.value == pytest.approx((0.9 + 0.5) / 2)
    draw = torch.Generator().manual_seed(0)
    covered = 0
    for _ in range(300):
        truth = (torch.arange(120) < 80).float()
        right = torch.rand(120, generator=draw) < torch.where(truth == 1, 0.9, 0.6)
        estimate = balanced(torch.stack([torch.where(right, truth, 1 - truth), truth], 1), "x")
        covered += estimate.low <= 0.75 <= estimate.high
    assert covered / 300 >= 0.95
