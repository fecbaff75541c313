"""LiRA on confidences that are drawn from known distributions, and against a loop that does what the paper says."""

from __future__ import annotations

import math
from functools import cache
from statistics import NormalDist

import pytest
import torch
from membership_worlds import area, found, listed, log_odds, normal_world
from scipy.special import digamma, polygamma
from torch import Tensor

from buckler import stats
from buckler.privacy._farm import halves
from buckler.privacy._shadows import Shadows
from buckler.privacy.lira import Variance, lira

RULES: tuple[Variance, ...] = ("shrunk", "fixed", "per-example")


def measured(scores: Tensor, member: Tensor) -> Tensor:
    return torch.stack([scores, member.double()], 1)


@pytest.mark.parametrize("online", [True, False])
def test_many_shadows_reach_what_is_known_of_two_normal_distributions(online: bool) -> None:
    gain = 1.5
    oracle, x, y, member, shadows = normal_world(20_000, 128, gain=gain)
    ranked = measured(lira(oracle, x, y, shadows=shadows, online=online), member)
    assert stats.area(ranked, "r").value == pytest.approx(area(gain), abs=0.012)
    assert stats.found(ranked, "r").value == pytest.approx(found(gain, 0.01), abs=0.03)


def test_a_target_that_learnt_nothing_gives_nobody_away() -> None:
    oracle, x, y, member, shadows = normal_world(4000, 16, gain=0.0)
    for online in (True, False):
        estimate = stats.area(measured(lira(oracle, x, y, shadows=shadows, online=online), member), "r", 0.999)
        assert estimate.low <= 0.5 <= estimate.high


def naive(target: list[float], known: Tensor, held: Tensor, variance: str, online: bool) -> list[float]:
    """What the paper says, row by row."""
    rows = range(len(target))

    def values(row: int, side: bool) -> list[float]:
        return [float(k[row]) for k, h in zip(known, held, strict=True) if bool(h[row]) is side]

    def squares(some: list[float]) -> float:
        centre = sum(some) / len(some)
        return sum((value - centre) ** 2 for value in some)

    def normal(row: int, side: bool) -> NormalDist:
        mine, every = values(row, side), [values(other, side) for other in rows]
        centre, free = sum(mine) / len(mine), len(mine) - 1
        if variance == "fixed":
            return NormalDist(centre, math.sqrt(sum(map(squares, every)) / sum(len(one) - 1 for one in every)))
        if variance == "per-example":
            return NormalDist(centre, math.sqrt(squares(mine) / free))
        worth, typical = prior([squares(one) / free for one in every], free)
        return NormalDist(centre, math.sqrt((squares(mine) + worth * typical) / (free + worth)))

    scores: list[float] = []
    for row, value in enumerate(target):
        without = normal(row, False)
        if online:
            scores.append(math.log(normal(row, True).pdf(value)) - math.log(without.pdf(value)))
        else:
            scores.append(math.log(without.cdf(value)))
    return scores


@cache
def grid() -> list[tuple[float, float]]:
    return [(worth, float(polygamma(1, worth / 2))) for worth in (10 ** (k / 2000) for k in range(-4000, 12000))]


def prior(found: list[float], free: int) -> tuple[float, float]:
    """Smyth's two moments, the first of which is looked up in a table."""
    logs = [math.log(one) for one in found]
    middle = sum(logs) / len(logs)
    beyond = sum((log - middle) ** 2 for log in logs) / (len(logs) - 1) - float(polygamma(1, free / 2))
    worth, _ = min(grid(), key=lambda pair: abs(pair[1] - beyond))
    shift = float(digamma(worth / 2)) - math.log(worth / 2) - float(digamma(free / 2)) + math.log(free / 2)
    return worth, math.exp(middle + shift)


@pytest.mark.parametrize("variance", ["fixed", "per-example", "shrunk"])
@pytest.mark.parametrize("online", [True, False])
def test_it_is_the_paper_s_row_by_row(variance: str, online: bool) -> None:
    draw = torch.Generator().manual_seed(4)
    held = halves(12, 8, seed=4)
    y = torch.zeros(12, dtype=torch.long)
    values = torch.randn(12, generator=draw).exp() * torch.randn(8, 12, generator=draw).double()
    shadows = Shadows(held, [log_odds(one) for one in values], y)
    target = torch.randn(12, generator=draw).double()
    x = torch.arange(12.0)[:, None]
    scores = lira(listed(log_odds(target)), x, y, shadows=shadows, online=online, variance=variance)  # pyright: ignore
    expected = naive(target.tolist(), values, held, variance, online)
    assert scores.tolist() == pytest.approx(expected, rel=2e-3, abs=2e-3)


def test_variances_that_differ_by_chance_alone_are_taken_for_one() -> None:
    """Shrinking goes as far as the rows are alike: all the way where they are, not at all where they are not."""
    worlds = {alike: normal_world(3000, 8, gain=1.0, spread=_spread(3000, alike)) for alike in (0.0, 1.5)}
    for alike, (oracle, x, y, _, shadows) in worlds.items():
        scores = {
            rule: lira(oracle, x, y, shadows=shadows, online=False, variance=rule).argsort().argsort().double()
            for rule in RULES
        }
        near = {
            rule: float(torch.corrcoef(torch.stack([scores["shrunk"], scores[rule]]))[0, 1])
            for rule in ("fixed", "per-example")
        }
        assert (near["fixed"] > near["per-example"]) is (alike == 0.0), near


def _spread(rows: int, differ: float) -> Tensor:
    return (differ * torch.randn(rows, generator=torch.Generator().manual_seed(3), dtype=torch.double)).exp()


def test_offline_is_one_sided() -> None:
    """A row that the target knows worse than models without it is no member, however strange that is."""
    held = torch.zeros(8, 3, dtype=torch.bool)
    y = torch.zeros(3, dtype=torch.long)
    values = torch.linspace(-1, 1, 8).double()[:, None].expand(8, 3)
    shadows = Shadows(held, [log_odds(one) for one in values], y)
    target = torch.tensor([-5.0, 0.0, 5.0]).double()
    scores = lira(listed(log_odds(target)), torch.arange(3.0)[:, None], y, shadows=shadows, online=False)
    assert scores.tolist() == sorted(scores.tolist())
    assert len(set(scores.tolist())) == 3


def test_shrinking_helps_where_rows_differ_and_shadows_are_few() -> None:
    oracle, x, y, member, shadows = normal_world(40_000, 16, gain=2.5, spread=_spread(40_000, 0.4))
    ranked = {rule: measured(lira(oracle, x, y, shadows=shadows, variance=rule), member) for rule in RULES}
    for alarms, better in ((0.001, 1.05), (0.01, 1.15)):
        hits = {rule: stats.found(rows, "r", alarms=alarms).value for rule, rows in ranked.items()}
        assert hits["shrunk"] > better * max(hits["fixed"], hits["per-example"])


def test_too_few_shadows_and_other_rows_are_refused() -> None:
    oracle, x, y, _, shadows = normal_world(10, 2, gain=1.0)
    with pytest.raises(ValueError, match="two shadows or more with each row and without it, got 1"):
        lira(oracle, x, y, shadows=shadows)
    with pytest.raises(ValueError, match="asked about these 9 rows, got 2 shadows of 10 rows"):
        lira(oracle, x[:9], y[:9], shadows=shadows)
