"""Feature-space examples against closed forms, and against noise of the same size on an encoder that learnt."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import Tensor, nn

from buckler import nets
from buckler.data import Rows
from buckler.embedding import embedded, probed
from buckler.encoders.feature_pgd import feature_pgd
from buckler.encoders.simclr import simclr
from buckler.threat import Ball


def linear(weight: Tensor) -> nn.Module:
    layer = nn.Linear(weight.shape[1], len(weight))
    with torch.no_grad():
        layer.weight.copy_(weight)
    return nn.Sequential(nn.Flatten(), layer).eval()


def distance(encoder: nn.Module, a: Tensor, b: Tensor) -> Tensor:
    return (embedded(encoder, a) - embedded(encoder, b)).norm(dim=1)


@pytest.mark.parametrize(("norm", "dual"), [("linf", 1), ("l2", 2)])
def test_a_linear_feature_moves_as_far_as_hoelder_says(norm: str, dual: int) -> None:
    w = torch.randn(1, 16, generator=torch.Generator().manual_seed(0))
    x = 0.5 + 0.01 * torch.randn(4, 1, 4, 4, generator=torch.Generator().manual_seed(1))
    ball = Ball(norm, 0.2)  # pyright: ignore[reportArgumentType]
    moved = feature_pgd(linear(w), x, ball=ball, groups=0, steps=40, restarts=1)
    assert bool(ball.contains(x, moved).all())
    torch.testing.assert_close(distance(linear(w), moved, x), (0.2 * w.norm(dual)).expand(4), rtol=1e-3, atol=1e-4)


def test_what_is_chosen_within_reach_is_met() -> None:
    encoder = linear(torch.randn(3, 16, generator=torch.Generator().manual_seed(0)))
    draw = torch.Generator().manual_seed(2)
    x = 0.3 + 0.4 * torch.rand(5, 1, 4, 4, generator=draw)
    chosen = (x + 0.2 * torch.rand(5, 1, 4, 4, generator=draw) - 0.1).clamp(0, 1)
    moved = feature_pgd(encoder, x, ball=Ball("linf", 0.1), targeted=True, chosen=chosen, steps=60)
    assert bool((distance(encoder, moved, chosen) < 0.05 * distance(encoder, x, chosen)).all())


def test_it_moves_features_much_further_than_noise(encoder: nn.Module, unseen: Rows) -> None:
    x, ball = unseen[0][:32], Ball("linf", 0.1)
    noise = ball.clip(x, x + 0.1 * torch.randn(x.shape, generator=torch.Generator().manual_seed(0)).sign())
    moved = feature_pgd(encoder, x, ball=ball, groups=0, steps=15, restarts=1)
    assert float((distance(encoder, moved, x) / distance(encoder, noise, x)).median()) > 2


def test_it_has_to_be_told_what_to_imitate(encoder: nn.Module, unseen: Rows) -> None:
    with pytest.raises(ValueError, match="an input to imitate for every row"):
        feature_pgd(encoder, unseen[0][:4], ball=Ball("linf", 0.1), targeted=True)


def test_a_task_of_its_own_turns_more_than_distance(encoder: nn.Module, learnt: Rows, unseen: Rows) -> None:
    """In the mean of two encoders: of one alone the gain is .02 to .28."""
    x, y = unseen[0][400:], unseen[1][400:]
    pool, ball = (255 * unseen[0][:400]).round().to(torch.uint8), Ball("linf", 0.1)

    def right(victim: nn.Module, groups: int) -> float:
        moved = feature_pgd(victim, x, ball=ball, groups=groups, pool=pool, steps=15, restarts=1)
        assert bool(ball.contains(x, moved).all())
        above = probed(victim, (unseen[0][:400], unseen[1][:400]), seed=1)
        return float((above(moved).argmax(1) == y).double().mean())

    both = encoder, simclr(learnt, net=partial(nets.encoder, width=8, stride=1), epochs=60, batch=128, seed=5)
    assert sum(right(one, 10) for one in both) / 2 < sum(right(one, 0) for one in both) / 2 - 0.01


def test_any_seed_will_do(encoder: nn.Module, unseen: Rows) -> None:
    x, ball = unseen[0][:12], Ball("linf", 0.1)
    assert bool(ball.contains(x, feature_pgd(encoder, x, ball=ball, groups=3, steps=1, seed=2**40 + 1)).all())


@pytest.mark.parametrize("groups", [1, 5])
def test_groups_need_inputs(encoder: nn.Module, unseen: Rows, groups: int) -> None:
    with pytest.raises(ValueError, match="2 groups or more, and an input"):
        feature_pgd(encoder, unseen[0][:4], ball=Ball("linf", 0.1), groups=groups)
