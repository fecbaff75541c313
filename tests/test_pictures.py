"""How like two inputs are, against sums written out, all permutations, and a search through the whole pool."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from buckler.pictures import MOST, apart, identified, matched, psnr, ssim


def images(many: int, side: int = 9, seed: int = 0, channels: int = 2) -> Tensor:
    return torch.rand(many, channels, side, side, generator=torch.Generator().manual_seed(seed))


def naive_ssim(a: Tensor, b: Tensor, side: int) -> float:
    found: list[float] = []
    for channel in range(a.shape[0]):
        for top in range(a.shape[1] - side + 1):
            for left in range(a.shape[2] - side + 1):
                p, q = (z[channel, top : top + side, left : left + side].double().flatten() for z in (a, b))
                mp, mq = p.mean(), q.mean()
                cov = ((p - mp) * (q - mq)).sum() / (len(p) - 1)
                up = (2 * mp * mq + 1e-4) * (2 * cov + 9e-4)
                found.append(float(up / ((mp**2 + mq**2 + 1e-4) * (p.var() + q.var() + 9e-4))))
    return sum(found) / len(found)


@pytest.mark.parametrize(("size", "window"), [(9, 7), (8, 7), (6, 5), (3, 3)])
def test_ssim_is_the_sum_over_windows(size: int, window: int) -> None:
    a, b = images(3, size), (0.7 * images(3, size) + 0.3 * images(3, size, seed=1))
    assert ssim(a, b).tolist() == pytest.approx([naive_ssim(p, q, window) for p, q in zip(a, b, strict=True)])


def test_psnr_is_what_it_is_defined_as() -> None:
    a, b = images(4), images(4, seed=1)
    wrong = [sum((p - q) ** 2 for p, q in zip(u.flatten().tolist(), v.flatten().tolist(), strict=True)) / u.numel()
             for u, v in zip(a, b, strict=True)]  # fmt: skip
    assert psnr(a, b).tolist() == pytest.approx([10 * math.log10(1 / one) for one in wrong], rel=1e-6)
    assert psnr(a, a).tolist() == [MOST] * 4
    assert ssim(a, a).tolist() == pytest.approx([1.0] * 4)


def test_the_matching_is_the_best_of_all_permutations() -> None:
    true, rebuilt = images(5), images(5, seed=3)
    far = apart(true, rebuilt)
    best = min(itertools.permutations(range(5)), key=lambda p: sum(float(far[i, j]) for i, j in enumerate(p)))
    assert matched(rebuilt, true).tolist() == list(best)
    order = torch.tensor([3, 1, 4, 0, 2])
    assert torch.equal(true[order][matched(true[order], true)], true)


def test_a_row_is_identified_where_nothing_in_the_pool_is_nearer() -> None:
    pool = images(40)
    pool[7] = pool[3]  # a twin
    places = torch.arange(10)
    rebuilt = pool[:10] + 0.35 * (images(10, seed=2) - 0.5)
    rebuilt[4] = pool[20]
    naive = []
    for at, row in enumerate(rebuilt):
        own = float((row - pool[at]).double().square().sum())
        others = [float((row - one).double().square().sum()) for one in pool if not torch.equal(one, pool[at])]
        naive.append(own < min(others))
    assert identified(rebuilt, places, pool).tolist() == naive
    assert naive[3]
    assert not naive[4]
