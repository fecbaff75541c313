"""Bounds of epsilon from canaries: none on noise, below the truth where it is known, and near it where it can be."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy import stats as scipy_stats
from torch import Tensor

from buckler.stats import _of_gaussian, _refuted, agree, epsilon, gaussian_epsilon, reach, recompute

DELTA = 1e-5


def canaries(many: int, gain: float, seed: int, delta: float = DELTA) -> Tensor:
    """Scores that are normal around `gain` for canaries that were held, around 0 for others."""
    draw = torch.Generator().manual_seed(seed)
    held = (torch.rand(many, generator=draw) < 0.5).float()
    return torch.stack([torch.randn(many, generator=draw) + gain * held, held, torch.full((many,), delta)], 1)


def flipped(many: int, bound: float, seed: int) -> Tensor:
    """Randomised response: coins, of which as many are told wrong as pure differential privacy asks for."""
    draw = torch.Generator().manual_seed(seed)
    held = torch.rand(many, generator=draw) < 0.5
    wrong = torch.rand(many, generator=draw) > 1 / (1 + math.exp(-bound))
    return torch.stack([(held ^ wrong).float(), held.float(), torch.zeros(many)], 1)


def mu(bound: float) -> float:
    """How far apart a Gaussian mechanism's outputs are that has this epsilon at `DELTA`, by bisection."""
    low, high = 0.0, 20.0
    for _ in range(60):
        middle = (low + high) / 2
        a, b = middle / 2 - bound / middle, -middle / 2 - bound / middle
        delta = scipy_stats.norm.cdf(a) - math.exp(bound) * scipy_stats.norm.cdf(b)
        low, high = (middle, high) if delta < DELTA else (low, middle)
    return low


@pytest.mark.parametrize("many", [60, 500])
def test_nothing_is_found_in_noise(many: int) -> None:
    found = [epsilon(canaries(many, 0.0, seed), "c").low for seed in range(200)]
    assert sum(low == 0 for low in found) >= 190


def test_nothing_is_found_in_noise_whatever_the_ties() -> None:
    """Canaries of one score are guessed by their place."""
    tied = [canaries(100, 0.0, seed) for seed in range(200)]
    found = [epsilon(torch.cat([torch.zeros(100, 1), one[:, 1:]], 1), "c").low for one in tied]
    assert sum(low == 0 for low in found) >= 190


@pytest.mark.parametrize("truth", [1.0, 2.0, 4.0])
def test_of_a_gaussian_mechanism_no_more_is_found_than_there_is(truth: float) -> None:
    worlds = [canaries(5000, mu(truth), seed) for seed in range(4)]
    assert all(0.2 * truth < epsilon(world, "c").low <= truth for world in worlds)
    close = [gaussian_epsilon(world, "c") for world in worlds]
    assert sum(one.low > truth for one in close) <= 1  # of 4, at 95 %
    assert np.mean([one.low for one in close]) >= 0.6 * truth


def test_the_truth_is_in_the_interval_of_few_canaries() -> None:
    """Of 20, of which coins seldom hold ten, and so far apart that hardly a guess is wrong otherwise."""
    truth = _of_gaussian(float(scipy_stats.norm.cdf(2.0)), DELTA)
    found = [gaussian_epsilon(canaries(20, 4.0, seed), "c") for seed in range(100)]
    assert sum(one.low <= truth <= one.high for one in found) >= 93


@pytest.mark.parametrize("truth", [0.5, 2.0, 4.0])
def test_of_pure_differential_privacy_most_is_found(truth: float) -> None:
    worlds = [flipped(5000, truth, seed) for seed in range(5)]
    found = [epsilon(world, "c").low for world in worlds]
    assert sum(low > truth for low in found) <= 1  # at 95 %
    assert np.mean(found) >= 0.6 * truth


def test_the_worst_mechanism_within_the_bound_is_called_out_no_oftener_than_said() -> None:
    """Of so many right guesses at epsilon and no delta, the chance is exactly that of a binomial."""
    for bound in (0.3, 1.0, 2.5):
        each = 1 / (1 + math.exp(-bound))
        right = int(scipy_stats.binom.isf(0.05, 200, each)) + 1
        assert _refuted(200, 200, right, 0.0, 0.05) >= bound
        assert _refuted(200, 200, right - 1, 0.0, 0.05) < bound


def test_delta_costs_what_the_theorem_says() -> None:
    """The bound's chance, summed term by term."""
    m, guesses, right, delta, bound = 300, 40, 37, 1e-4, _refuted(300, 40, 37, 1e-4, 0.01)
    each = 1 / (1 + math.exp(-bound))
    pmf = [math.comb(guesses, k) * each**k * (1 - each) ** (guesses - k) for k in range(guesses + 1)]
    most = max(sum(pmf[right - i : right]) / i for i in range(1, right + 1))
    assert sum(pmf[right:]) + 2 * m * delta * most == pytest.approx(0.01, rel=1e-6)
    found = [_refuted(300, 40, 37, delta, 0.01) for delta in (0.0, 1e-5, 1e-4, 1e-3)]
    assert all(a >= b for a, b in pairwise(found))
    assert found[-1] == 0


def test_a_guess_that_is_always_right_is_bounded_by_how_many_there_are() -> None:
    found = [epsilon(torch.cat([c[:, 1:2], c[:, 1:]], 1), "c").low for c in (canaries(m, 0, 0) for m in (50, 500))]
    assert 1 < found[0] < found[1] < math.log(500)


def test_nothing_is_above_its_reach_which_is_that_of_guesses_that_are_all_right() -> None:
    half = torch.stack([torch.arange(200.0), (torch.arange(200) >= 100).float(), torch.full((200,), DELTA)], 1)
    assert reach(half, "c").value == epsilon(half, "c").low == pytest.approx(3.75, abs=0.01)
    for seed in range(5):
        world = canaries(60, seed, seed)
        assert epsilon(world, "c").low <= reach(world, "c").value <= reach(half, "c").value


def test_of_how_often_guesses_are_right_the_gaussian_follows() -> None:
    for truth in (0.5, 1.0, 4.0):
        right = float(scipy_stats.norm.cdf(mu(truth) / 2))
        assert _of_gaussian(right, DELTA) == pytest.approx(truth, rel=1e-6)
    assert _of_gaussian(0.4, DELTA) == 0
    assert _of_gaussian(1.0, DELTA) == _of_gaussian(0.9, 0.0) == math.inf
    found, gap = _of_gaussian(0.9, 1e-30), 2 * float(scipy_stats.norm.ppf(0.9))
    over, under = scipy_stats.norm.logcdf([gap / 2 - found / gap, -gap / 2 - found / gap])
    assert math.exp(over) - math.exp(found + under) == pytest.approx(1e-30, rel=1e-3)


def test_it_is_recomputed_from_the_canaries_and_undefined_without_enough() -> None:
    world = canaries(200, 2.0, 0)
    for found in (statistic(world, "canaries") for statistic in (epsilon, reach, gaussian_epsilon)):
        assert agree(found, recompute(found, {"canaries": world}))
    assert math.isnan(epsilon(world[:8], "c").value)
    assert math.isnan(reach(world[:8], "c").value)
    assert math.isnan(gaussian_epsilon(world[:1], "c").value)
