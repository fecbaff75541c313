from __future__ import annotations

from itertools import product

import pytest
import torch
from stolen_worlds import CLASSES, SIDES, net, rows, victim
from torch import Tensor, nn
from torch.nn import functional as F

from buckler.theft.prediction_poisoning import _kept, prediction_poisoning
from buckler.train import started


def gradient(thief: nn.Linear, x: Tensor, target: Tensor) -> Tensor:
    """Of a thief's loss on one row, in its weights, as autograd takes it."""
    (grad,) = torch.autograd.grad(F.cross_entropy(thief(x[None]), target[None]), thief.weight)
    return grad.flatten()


def test_the_gradient_of_a_thief_is_turned_as_far_as_any_corner_turns_it() -> None:
    """Against autograd on a linear thief and a search of all corners."""
    model, x, epsilon = victim(steep=2.0), rows(15), 0.6
    thief = started(net, 0)
    assert isinstance(thief, nn.Linear)
    before = model(x).softmax(1).detach()
    after = prediction_poisoning(model, epsilon=epsilon, net=net)(x).softmax(1).detach()
    for row, y, shown in zip(x, before, after, strict=True):
        wanted = gradient(thief, row, y)
        angles = [
            float(F.cosine_similarity(gradient(thief, row, corner), wanted, dim=0)) for corner in torch.eye(CLASSES)
        ]
        corner = torch.eye(CLASSES)[int(torch.tensor(angles).argmin())]
        share = min(1.0, epsilon / float((corner - y).abs().sum()))
        torch.testing.assert_close(shown, y + share * (corner - y), atol=1e-5, rtol=0)


@torch.no_grad()
def test_scores_move_no_further_than_they_may() -> None:
    model, x = victim(steep=2.0), rows(200)
    before = model(x).softmax(1)
    for epsilon in (0.0, 0.3, 1.0, 2.0):
        for keep in (False, True):
            after = prediction_poisoning(model, epsilon=epsilon, keep_label=keep)(x).softmax(1)
            moved = (after - before).abs().sum(1)
            assert float(moved.max()) <= epsilon + 1e-4
            if keep:
                assert torch.equal(after.argmax(1), before.argmax(1))
    free = prediction_poisoning(model, epsilon=2.0)(x).softmax(1)
    assert float((free.argmax(1) == before.argmax(1)).float().mean()) < 0.1


def test_the_corner_that_keeps_the_label_is_nearly_the_best_of_all() -> None:
    classes = 5
    draw = torch.Generator().manual_seed(0)
    y, p = (torch.randn(60, classes, generator=draw).mul(2).softmax(1) for _ in range(2))
    found = _kept(y, p)
    chosen = F.cosine_similarity(found - p, y - p)
    best = torch.full((60,), 2.0)
    for picked in product([0.0, 1.0], repeat=classes):
        corner = torch.maximum(torch.tensor(picked).expand(60, -1), F.one_hot(y.argmax(1), classes).float())
        best = torch.minimum(best, F.cosine_similarity(corner / corner.sum(1, keepdim=True) - p, y - p))
    assert bool((found.gather(1, y.argmax(1, keepdim=True)).squeeze(1) >= found.amax(1) - 1e-6).all())
    assert float((chosen - best < 1e-5).float().mean()) > 0.8
    assert float((chosen - best).mean()) < 0.03


def test_an_untrained_thief_may_be_named_or_taken_for_even() -> None:
    x = rows(20)
    named, even = (prediction_poisoning(victim(), net=one)(x) for one in (lambda: nn.Linear(SIDES, CLASSES), None))
    assert named.shape == even.shape == (20, CLASSES)
    with pytest.raises(ValueError, match="epsilon in"):
        prediction_poisoning(victim(), epsilon=2.5)
