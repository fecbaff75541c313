"""Adaptive blend, taken apart pixel by pixel: which pieces a row has, and which label."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from trigger_problems import TEN, check_a_network_learns, check_a_trigger, in_bytes, pictures

from buckler.data import Poisoned, digits
from buckler.poisoning._pieces import cut, kept
from buckler.poisoning._touch import CHUNK
from buckler.poisoning.adaptive_blend import adaptive_blend
from buckler.threat import Share


def strengths(found: Poisoned, x: Tensor) -> Tensor:
    """How strongly each pixel of the touched rows is mixed with the pattern: `(R, H, W)`, from the first channel."""
    key = found.trigger(torch.zeros_like(x[:1]))[0] / 0.2
    far = (key - x[found.rows]).abs() > 0.02  # elsewhere the quotient says nothing
    share = (found.x - x)[found.rows] / torch.where(far, key - x[found.rows], 1.0)
    return torch.where(far, share, torch.nan)[:, 0]


def test_every_row_has_its_own_half_of_the_pieces() -> None:
    x, y = pictures(many=400, height=12, width=16)
    found = adaptive_blend((x, y), share=TEN)
    seen = strengths(found, x)
    halves = set()
    for row in seen:
        pieces = []
        for down in range(4):
            for across in range(4):
                block = row[3 * down : 3 * down + 3, 4 * across : 4 * across + 4]
                mixed = block[block.isfinite()]
                assert torch.allclose(mixed, mixed[:1].expand_as(mixed), atol=1e-3), "a piece is there or is not"
                pieces.append(round(float(mixed[0]), 3))
        assert sorted(pieces) == [0.0] * 8 + [0.15] * 8
        halves.add(tuple(pieces))
    assert len(halves) > 70, "out of 80 rows"


def test_the_whole_pattern_comes_at_test_time() -> None:
    x, y = pictures(channels=3)
    found = adaptive_blend((x, y), share=TEN, test_alpha=0.4)
    key = found.trigger(torch.zeros(1, 3, 8, 8)) / 0.4
    assert torch.allclose(found.trigger(x), 0.6 * x + 0.4 * key, atol=1e-6)
    assert key.amin() >= 0
    assert key.amax() <= 1


@pytest.mark.parametrize(("cover", "covers"), [(None, 6), (0.0, 0), (0.2, 12)])
@pytest.mark.parametrize("bytes_", [False, True])
def test_poison_lies_and_covers_do_not(cover, covers, bytes_) -> None:
    x, y = in_bytes(pictures()) if bytes_ else pictures()
    found = adaptive_blend((x, y), share=TEN, target=1, cover=cover)
    poison = found.rows & ~found.covers
    assert found.x.dtype == x.dtype
    assert int(poison.sum()) == 6
    assert int(found.covers.sum()) == covers
    assert not (found.covers & ~found.rows).any()
    assert (y[found.rows] != 1).all()
    assert (found.y[poison] == 1).all()
    assert torch.equal(found.y[~poison], y[~poison])
    assert torch.equal(found.original, y)
    assert torch.equal(found.x[~found.rows], x[~found.rows])
    assert (found.x != x)[found.rows].flatten(1).any(1).all()
    assert found.class_rate == pytest.approx(6 / 21), "covers are no poison"


def test_pieces_are_a_grid_that_covers_the_image() -> None:
    assert cut(4, 3, 5).tolist() == [[0, 0, 0, 1, 1], [0, 0, 0, 1, 1], [2, 2, 2, 3, 3]]
    assert cut(64, 8, 8).flatten().tolist() == list(range(64))
    drawn = kept(5000, 16, 8, torch.Generator().manual_seed(0))
    assert (drawn.sum(1) == 8).all()
    assert (drawn.float().mean(0) - 0.5).abs().max() < 0.03, "every piece as often as any other"


def test_rows_beyond_one_chunk_have_their_own_pieces() -> None:
    many = 2 * (CHUNK + 200)
    x, y = torch.zeros(many, 1, 4, 4), torch.arange(many) % 2
    found = adaptive_blend((x, y), share=Share(0.5), cover=0.0, pattern="noise")
    shown = (found.x[found.rows] != 0).flatten(1)
    assert len(shown) == CHUNK + 200
    assert (shown.sum(1) == 8).all()
    assert not torch.equal(shown[:200], shown[CHUNK:])


def test_a_network_learns_it_and_one_that_never_saw_it_does_not() -> None:
    check_a_network_learns(adaptive_blend(digits(train=True), share=TEN, test_alpha=0.4), obeys=0.7, clean=0.3)


def test_what_every_trigger_keeps_to() -> None:
    check_a_trigger(adaptive_blend)


def test_the_pattern_has_a_seed_of_its_own() -> None:
    black = torch.zeros(1, 1, 8, 8)
    keys = [
        adaptive_blend(pictures(), share=TEN, seed=seed, pattern_seed=key).trigger(black)
        for seed, key in ((0, 0), (1, 0), (0, 1))
    ]
    assert torch.equal(keys[0], keys[1])
    assert not torch.allclose(keys[0], keys[2], atol=0.05)


@pytest.mark.parametrize(
    ("knobs", "said"),
    [
        ({"alpha": 0.0}, "alphas above 0"),
        ({"test_alpha": 1.1}, "alphas above 0"),
        ({"alpha": float("nan")}, "alphas above 0"),
        ({"keep": 0.0}, "at least one piece"),
        ({"keep": 1.2}, "at least one piece"),
        ({"pieces": 15}, "a square number of pieces"),
        ({"pieces": 81}, "at most 64"),
        ({"pieces": 0}, "a square number of pieces"),
        ({"pattern": "cartoon"}, "a pattern out of"),
        ({"cover": 1.0}, "a share of covers"),
        ({"cover": -0.1}, "a share of covers"),
        ({"target": 4}, "target class of 0 to 3"),
        ({"share": Share(0.5)}, "ask for a smaller share"),
    ],
)
def test_bad_knobs(knobs, said) -> None:
    with pytest.raises(ValueError, match=said):
        adaptive_blend(pictures(), **{"share": TEN, **knobs})
