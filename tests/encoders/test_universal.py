"""One perturbation for all: the same everywhere, as far as its limit, and better than one that is drawn."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from buckler.data import Rows
from buckler.embedding import embedded, probed
from buckler.encoders.universal import universal
from buckler.threat import Ball


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_every_row_is_moved_by_the_same(encoder: nn.Module, norm: str) -> None:
    draw = torch.Generator().manual_seed(0)
    x, pool = (0.4 + 0.2 * torch.rand(many, 1, 8, 8, generator=draw) for many in (6, 40))
    ball = Ball(norm, 0.1)  # pyright: ignore[reportArgumentType]
    moved = universal(encoder, x, ball=ball, pool=pool, steps=10)
    assert bool(ball.contains(x, moved).all())
    torch.testing.assert_close(moved - x, (moved - x)[:1].expand_as(x))
    assert float(ball.size(moved - x).max()) == pytest.approx(0.1, rel=1e-3)


def test_it_turns_more_than_any_of_ten_drawn(encoder: nn.Module, unseen: Rows) -> None:
    x, y = unseen[0][300:], unseen[1][300:]
    pool, ball = (255 * unseen[0][:300]).round().to(torch.uint8), Ball("linf", 0.15)
    victim = probed(encoder, (unseen[0][:300], unseen[1][:300]), seed=1)

    def right(moved: Tensor) -> float:
        return float((victim(moved).argmax(1) == y).double().mean())

    draw = torch.Generator().manual_seed(0)
    drawn = [(x + 0.15 * torch.randn(1, 1, 8, 8, generator=draw).sign()).clamp(0, 1) for _ in range(10)]
    moved = universal(encoder, x, ball=ball, pool=pool, steps=150)
    assert right(moved) < min(map(right, drawn)) - 0.03


def test_features_of_rows_it_never_saw_move_further_than_by_any_of_ten_drawn(encoder: nn.Module, unseen: Rows) -> None:
    x, pool = unseen[0][:100], (255 * unseen[0][100:250]).round().to(torch.uint8)
    clean = embedded(encoder, x)

    def alike(moved: Tensor) -> float:
        return float(torch.cosine_similarity(embedded(encoder, moved), clean).mean())

    draw = torch.Generator().manual_seed(0)
    drawn = [(x + 0.1 * torch.randn(1, 1, 8, 8, generator=draw).sign()).clamp(0, 1) for _ in range(10)]
    moved = universal(encoder, x, ball=Ball("linf", 0.1), pool=pool, groups=0, steps=150)
    assert alike(moved) < min(map(alike, drawn)) - 0.02


def test_rows_have_one_limit(encoder: nn.Module, unseen: Rows) -> None:
    x = unseen[0][:2]
    for ball in (Ball("l1", 1), Ball("linf", torch.tensor([0.1, 0.2]))):
        with pytest.raises(ValueError, match="linf or l2 with one radius for all rows"):
            universal(encoder, x, ball=ball, pool=x)
