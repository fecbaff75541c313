"""Quantile regression knows how sure a model is of such a row anyway: what is left is membership."""

from __future__ import annotations

import torch
from torch import Tensor

from buckler import stats
from buckler.privacy.loss_threshold import loss_threshold
from buckler.privacy.quantile import quantile
from buckler.target import Oracle


def world(rows: int, gain: float, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Rows whose first pixel says how easy they are, who is a member, and log-odds in the last one."""
    draw = torch.Generator().manual_seed(seed)
    x = torch.rand(rows, 1, 3, 3, generator=draw)
    member = torch.rand(rows, generator=draw) < 0.5
    odds = 8 * (x[:, 0, 0, 0] - 0.5) + 0.7 * torch.randn(rows, generator=draw) + gain * member
    x[:, 0, 2, 2] = (odds / 40 + 0.5).clamp(0, 1)
    return x, member, odds


def answer(x: Tensor) -> Tensor:
    return (40 * (x[:, 0, 2, 2] - 0.5))[:, None].mul(torch.tensor([[1.0, 0.0]])).softmax(1)


def area(scores: Tensor, member: Tensor) -> stats.Estimate:
    return stats.area(torch.stack([scores, member.double()], 1), "r", 0.999)


def hidden(x: Tensor) -> Tensor:
    """Without the pixel that the answers are read from."""
    x = x.clone()
    x[:, 0, 2, 2] = 0.5
    return x


class Known:
    """Answers by row, so that the regressor need not see what they are read from."""

    def __init__(self, *parts: Tensor) -> None:
        whole = torch.cat(parts)
        self.keys, self.answers = hidden(whole).flatten(1), answer(whole)

    def __call__(self, x: Tensor) -> Tensor:
        places = (x.flatten(1)[:, None] == self.keys[None]).all(2).int().argmax(1)
        return self.answers[places]


def test_what_a_row_is_like_is_taken_out() -> None:
    x, member, _ = world(600, 1.5, 0)
    public, _, _ = world(600, 0.0, 1)
    y, labels = (torch.zeros(600, dtype=torch.long) for _ in range(2))
    oracle = Oracle(Known(x, public))
    better = area(quantile(oracle, hidden(x), y, public=(hidden(public), labels)), member)
    plain = area(loss_threshold(oracle, hidden(x), y), member)
    assert plain.value < 0.7
    assert better.low > plain.value + 0.1


def test_nobody_is_found_where_nothing_was_learnt() -> None:
    x, member, _ = world(500, 0.0, 0)
    public, _, _ = world(300, 0.0, 1)
    y, labels = torch.zeros(500, dtype=torch.long), torch.zeros(300, dtype=torch.long)
    scores = quantile(Oracle(Known(x, public)), hidden(x), y, public=(hidden(public), labels), epochs=5)
    estimate = area(scores, member)
    assert estimate.low <= 0.5 <= estimate.high


def test_every_row_is_asked_once_and_the_seed_decides() -> None:
    x, _, _ = world(40, 1.0, 0)
    public, _, _ = world(30, 0.0, 1)
    y, labels = torch.zeros(40, dtype=torch.long), torch.zeros(30, dtype=torch.long)
    oracle = Oracle(Known(x, public))
    one, same, other = (
        quantile(oracle, hidden(x), y, public=(hidden(public), labels), epochs=2, seed=seed) for seed in (0, 0, 1)
    )
    assert oracle.asked == 3 * 70
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
