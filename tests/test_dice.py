from __future__ import annotations

import torch
from scipy import stats

from buckler.dice import Dice, fingerprint_rows


def _rows(many: int) -> torch.Tensor:
    return torch.rand(many, 3, 4, generator=torch.Generator().manual_seed(1))


def test_a_row_draws_the_same_in_any_batch_and_after_others_left() -> None:
    x = _rows(8)
    whole, alone = Dice(x, 5), Dice(x[[6]], 5)
    assert torch.equal(whole.uniform(7)[6:7], alone.uniform(7))
    whole.keep(torch.tensor([1, 6]))
    assert torch.equal(whole.normal(3, 2)[1:], alone.normal(3, 2))
    assert torch.equal(whole.below(100, 4)[1:], alone.below(100, 4))


def test_streams_differ_by_seed_row_and_call() -> None:
    x = _rows(4)
    dice = Dice(x, 0)
    first, second, other = dice.uniform(50), dice.uniform(50), Dice(x, 1).uniform(50)
    for a, b in ((first, second), (first, other), (first[:2], first[2:])):
        assert (a == b).float().mean() < 0.05


def test_draws_have_the_distributions_they_name() -> None:
    dice = Dice(_rows(40), 3)
    uniform, normal, signs = dice.uniform(2500).flatten(), dice.normal(2500).flatten(), dice.signs(2500)
    assert stats.kstest(uniform.numpy(), "uniform").pvalue > 1e-3
    assert stats.kstest(normal.numpy(), "norm").pvalue > 1e-3
    assert abs(signs.mean()) < 4 / 100_000**0.5
    counts = torch.bincount(dice.below(7, 2500).flatten(), minlength=7)
    assert len(counts) == 7
    assert stats.chisquare(counts.numpy()).pvalue > 1e-3
    # neighbouring draws, and neighbouring rows, are uncorrelated
    grid = Dice(_rows(40), 3).uniform(2500)
    assert abs(torch.corrcoef(torch.stack([grid[:, :-1].flatten(), grid[:, 1:].flatten()]))[0, 1]) < 0.015
    assert abs(torch.corrcoef(torch.stack([grid[:-1].flatten(), grid[1:].flatten()]))[0, 1]) < 0.015


def test_fingerprints_are_of_content_and_place() -> None:
    x = _rows(3)
    same = fingerprint_rows(x.clone())
    assert torch.equal(fingerprint_rows(x), same)
    swapped = x.clone()
    swapped[0, 0, 0], swapped[0, 0, 1] = x[0, 0, 1], x[0, 0, 0]
    assert fingerprint_rows(swapped)[0] != same[0]
    nudged = x.clone()
    nudged[1, 2, 3] = torch.nextafter(x[1, 2, 3], torch.tensor(2.0))
    assert fingerprint_rows(nudged)[1] != same[1]
