"""Noise on answers: of the size that was asked for, and the same for the same input."""

from __future__ import annotations

import pytest
import torch
from membership_worlds import noise as rows
from torch import Tensor, nn

from buckler.privacy.noise import noise


class Even(nn.Module):
    """Answers everything with the same scores, far from 0 and 1."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.tensor([0.4, 0.3, 0.2, 0.1]).log().expand(len(x), 4)


def test_it_has_the_size_that_was_asked_for() -> None:
    x = rows(4000)[0]
    scores = noise(Even(), size=0.01, keep_label=False)(x).softmax(1)
    off = scores / scores[:, :1] - torch.tensor([0.4, 0.3, 0.2, 0.1]) / 0.4
    # of a ratio b / a with noise of one size on both: size / a * sqrt(1 + (b / a)^2)
    expected = torch.tensor([0.01 / 0.4 * (1 + (b / 0.4) ** 2) ** 0.5 for b in (0.3, 0.2, 0.1)])
    torch.testing.assert_close(off[:, 1:].std(0), expected, rtol=0.05, atol=0)


def test_asking_again_removes_nothing_and_another_seed_is_other_noise() -> None:
    x = rows(50)[0]
    first, again, other = (noise(Even(), seed=seed)(x) for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.allclose(first, other)
    assert not torch.allclose(first[0], first[1])


def test_the_mean_over_inputs_that_hardly_differ_undoes_it() -> None:
    """As its docstring says, and as the attack `near` of the trial of guards does."""
    x = rows(20)[0]
    guard, true = noise(Even(), size=0.02, keep_label=False), torch.tensor([0.4, 0.3, 0.2, 0.1])
    close = [x + 1e-5 * torch.randn(x.shape, generator=torch.Generator().manual_seed(seed)) for seed in range(100)]
    answers = torch.stack([guard(one).softmax(1) for one in close])
    once, mean = ((scores - true).square().mean().sqrt() for scores in (answers[0], answers.mean(0)))
    assert float(mean) < 0.25 * float(once)


def test_labels_change_only_where_they_may() -> None:
    x = rows(500)[0]
    assert bool((noise(Even(), size=0.5)(x).argmax(1) == 0).all())
    assert 0.2 < float((noise(Even(), size=0.5, keep_label=False)(x).argmax(1) == 0).float().mean()) < 0.8


@pytest.mark.parametrize("size", [0.0, -1.0, float("nan"), float("inf")])
def test_a_size_that_is_none_is_refused(size: float) -> None:
    with pytest.raises(ValueError, match="expected a size of noise above 0"):
        noise(Even(), size=size)
