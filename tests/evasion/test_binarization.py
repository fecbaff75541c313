from __future__ import annotations

from functools import partial

import defects
import pytest
import torch
from defects import Broken, held_out, sound
from torch import Tensor

from buckler.contract import told
from buckler.dice import Dice
from buckler.evasion import _binarization
from buckler.evasion._binarization import binarization
from buckler.evasion._doubt import noise
from buckler.evasion.pgd import pgd
from buckler.kinds import Perturbed
from buckler.nets import LinearModel
from buckler.target import Oracle, ScoreOracle, frozen
from buckler.threat import Ball

BALL = Ball("linf", 0.1)


def test_every_planted_example_exists_and_the_clean_row_is_none() -> None:
    x, _ = held_out(12)
    model = sound()
    with frozen(model):
        heads, easy = _binarization._prepare(model, x, BALL, 0)
        assert len(heads.clean) >= 10
        assert easy < 0.3
        many = torch.arange(len(heads.clean))
        assert (heads(heads.clean).argmax(1) == 0).all()
        dice = Dice(x, 0)
        with torch.no_grad():
            inner = [noise(x, BALL, dice, edge=True, reach=0.95) for _ in range(_binarization.INNER // 2)]
            [noise(x, BALL, dice, edge=False, reach=0.95) for _ in range(_binarization.INNER - len(inner))]
            surface = torch.stack([noise(x, BALL, dice, edge=True) for _ in range(_binarization.CANDIDATES)], 1)
            kept = surface[[int((x == row).flatten(1).all(1).nonzero()[0]) for row in heads.clean]]
            exists = torch.stack([heads.scores(points, many) > 0 for points in kept.unbind(1)]).any(0)
    assert exists.all(), "on some row none of the candidate points is on its side"


def test_one_batch_and_one_row_at_a_time_agree() -> None:
    x, _ = held_out(12)
    ball = Ball("linf", 0.1)
    with frozen(sound()) as model:
        heads, _ = _binarization._prepare(model, x, ball, 0)
        assert _binarization._apart(heads)
        index = torch.arange(len(heads.clean))
        for method in (partial(pgd, steps=5), defects.too_few_steps):
            together = _binarization._solved(method, heads, heads, index)
            alone = torch.cat([_binarization._solved(method, heads, heads, row) for row in index.split(1)])
            assert together.equal(alone)


def test_binarization_finds_the_last_linear_layer_or_takes_the_logits() -> None:
    x, y = held_out(16)
    model = sound()
    assert _binarization._last_linear(model, x) is model.head
    assert _binarization._last_linear(Broken(model, defects.rounded_straight_through), x) is model.head
    assert _binarization._last_linear(Broken(model, defects.softmax), x) is None
    scaled = Broken(model, lambda inner, x: inner(x) * 2)
    assert _binarization._last_linear(scaled, x) is None
    assert binarization(partial(pgd, steps=20), scaled, x, y, ball=BALL).passed


def test_binarization_goes_through_a_surrogate() -> None:
    x, y = held_out(16)
    target, surrogate = Broken(sound(), defects.rounded), Broken(sound(), defects.rounded_straight_through)
    assert binarization(pgd, surrogate, x, y, ball=BALL, target=target).passed
    assert not binarization(pgd, target, x, y, ball=BALL).passed
    assert not told(
        binarization(pgd, LinearModel(torch.randn(10, 64), torch.zeros(10)), x, y, ball=BALL, target=target)
    )


def random_corners(oracle: ScoreOracle, x: Tensor, y: Tensor, *, ball: Ball, queries: int = 150) -> Perturbed:
    """Random search over single pixels: weak, and enough for a planted example."""
    best, dice = x.clone(), Dice(x, 0)
    score = oracle(best)[:, 0]
    for _ in range(queries - 1):
        pick = dice.uniform(*x.shape[1:]) < 0.1
        moved = torch.where(pick, ball.clip(x, x + dice.signs(*x.shape[1:]) * ball.radii(x)), best)
        now = oracle(moved)[:, 0]
        better = now < score
        best[better], score[better] = moved[better], now[better]
    return best


def test_binarization_of_black_boxes() -> None:
    x, y = held_out(16)
    assert binarization(random_corners, sound(), x, y, ball=BALL).passed
    assert not binarization(defects.gives_up, sound(), x, y, ball=BALL).passed
    assert not told(binarization(defects.gives_up, Oracle(lambda x: x.flatten(1)[:, :10]), x, y, ball=BALL))


def test_easy_problems_prove_nothing_when_solved_and_much_when_missed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_binarization, "CLOSENESS", 0.05)
    x, y = held_out(16)
    solved = binarization(partial(pgd, steps=10), sound(), x, y, ball=BALL)
    assert not told(solved)
    assert "random noise alone" in solved.says
    missed = binarization(defects.returns_input, sound(), x, y, ball=BALL)
    assert told(missed)
    assert not missed.passed
