import math

import pytest
import torch
from norm_problems import Counting, Sure, digits, linear, norms

from buckler.evasion.ddn import ddn
from buckler.nets import LinearModel
from buckler.threat import Ball

FREE = Ball("l2", math.inf)


def test_finds_the_distance_of_a_linear_model():
    # where several classes are close, the cross-entropy heads between them; 1000 times the logits tells them apart
    for classes, near, scale in ((2, True, 1), (4, True, 1000), (4, False, 1)):
        model, x, y = linear(classes=classes, near=near, scale=scale)
        found = norms(model, x, y, ddn(model, x, y, ball=FREE, start=0.02 if near else 1.0), 2)
        distance = model.distances(x, y, "l2")
        assert bool((found >= distance * 0.9999).all())
        assert bool((found <= distance * 1.05).all())


def test_no_further_than_foolbox():
    foolbox = pytest.importorskip("foolbox")
    model, x, y = digits()
    peer = foolbox.PyTorchModel(model, bounds=(0, 1), device="cpu")
    theirs = norms(model, x, y, foolbox.attacks.DDNAttack(steps=60)(peer, x, y, epsilons=None)[0], 2)
    ours = norms(model, x, y, ddn(model, x, y, ball=FREE, steps=60), 2)
    assert ours.isfinite().all()
    assert ours.median() <= 1.02 * theirs.median()
    assert ours.mean() <= 1.02 * theirs.mean()


def test_is_not_stopped_by_a_model_that_is_very_sure():
    model, x, y = linear(classes=2)
    sure = Sure(model)
    assert bool((torch.autograd.functional.jacobian(lambda v: sure(v).softmax(1).sum(0), x) == 0).all())
    plain, hard = (norms(m, x, y, ddn(m, x, y, ball=FREE), 2) for m in (model, sure))
    assert torch.allclose(plain, hard, rtol=1e-3)


def test_a_finite_radius_is_kept_and_ends_rows():
    model, x, y = digits()
    least = norms(model, x, y, ddn(model, x, y, ball=FREE), 2)
    ball = Ball("l2", torch.where(torch.arange(60) % 2 == 0, 1.3, 0.5) * least)
    counting = Counting(model)
    moved = ddn(counting, x, y, ball=ball)
    assert ball.contains(x, moved).all()
    inside = norms(model, x, y, moved, 2).isfinite()
    assert bool(inside[::2].all())
    assert not bool((inside & (least > 0))[1::2].any())
    assert torch.equal(moved[~inside], x[~inside])
    assert counting.rows == sorted(counting.rows, reverse=True)
    assert sum(counting.rows) < 4500


def test_rows_that_are_wrong_cost_one_look_and_stay():
    model, x, y = linear()
    counting = Counting(model)
    assert torch.equal(ddn(counting, x, (y + 1) % 4, ball=FREE), x)
    assert counting.rows == [16]


def test_targeted_and_no_gradient_and_no_rows():
    model, x, y = digits()
    moved = ddn(model, x, y, ball=FREE, goal=7)
    assert (model(moved).argmax(1) == 7).float().mean() > 0.95
    flat = LinearModel(torch.zeros(3, 64), torch.tensor([1.0, 0.0, 0.0]))
    assert torch.equal(ddn(flat, x, torch.zeros_like(y), ball=FREE), x)
    assert ddn(model, x[:0], y[:0], ball=FREE).shape == x[:0].shape


def test_refuses():
    model, x, y = linear()
    with pytest.raises(ValueError, match="linf"):
        ddn(model, x, y, ball=Ball("linf", 0.1))
    with pytest.raises(ValueError, match="gamma"):
        ddn(model, x, y, ball=FREE, gamma=1.0)
