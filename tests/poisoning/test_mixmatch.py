"""MixMatch and FixMatch against naive formulas, plain training, and what they may not look at."""

from __future__ import annotations

import pytest
import torch
from cultivate_problems import few, net, same_weights
from torch import Tensor
from torch.nn import functional as F

from buckler.nets import LinearModel
from buckler.poisoning._mixmatch import Fixing, Mixing, fixmatch, mixmatch, mixup, sharpened
from buckler.train import constant, fit, started

UNMIXED = Mixing(alpha=0, weight=3.0, ramp=0)
STEP = 0.1 * 1.9
"""How far the first step of SGD with Nesterov momentum 0.9 goes at a rate of 0.1."""


def as_it_is(x: Tensor) -> Tensor:
    return x


def half(many: int) -> Tensor:
    return torch.arange(many) % 2 == 0


def linear() -> LinearModel:
    torch.manual_seed(0)
    return LinearModel(torch.randn(10, 64), torch.zeros(10))


def stepped(model: LinearModel, loss: Tensor) -> list[Tensor]:
    """The parameters after one step on `loss`, by hand."""
    parameters = [model.weight, model.bias]
    gradients = torch.autograd.grad(loss, parameters)
    return [(p - STEP * (g + 5e-4 * p)).detach() for p, g in zip(parameters, gradients, strict=True)]


def test_sharpening_in_closed_form() -> None:
    said = torch.tensor([[0.6, 0.4, 0.0], [1 / 3, 1 / 3, 1 / 3]])
    assert torch.allclose(sharpened(said, 0.5), torch.tensor([[0.36 / 0.52, 0.16 / 0.52, 0.0], [1 / 3, 1 / 3, 1 / 3]]))
    assert torch.allclose(sharpened(said, 1.0), said)


def test_mixing_treats_images_and_labels_alike_and_keeps_the_larger_part() -> None:
    torch.manual_seed(0)
    wanted = torch.eye(16)
    parts = []
    for _ in range(50):
        images, labels = mixup(wanted, wanted, 0.75)
        assert torch.equal(images, labels)
        assert torch.allclose(labels.sum(1), torch.ones(16))
        assert (labels.diag() >= 0.5 - 1e-6).all()
        parts.append(labels.diag().min())
    assert torch.stack(parts).unique().numel() == 50, "the part is drawn every time"


def test_the_unlabelled_weight_rises_over_the_ramp() -> None:
    mixing = Mixing(weight=15, ramp=10, done=4)
    assert [mixing.at(epoch) for epoch in (0, 1, 6, 50)] == [6.0, 7.5, 15.0, 15.0]
    assert Mixing(weight=3, ramp=0).at(0) == 3


def test_one_step_is_that_of_the_naive_formula() -> None:
    x, y = few(8)
    trusted, model = half(8), linear()
    said, wanted = 0.0, []
    for row in range(8):
        probabilities = model(x[row : row + 1]).softmax(1)[0]
        if trusted[row]:
            said = said - probabilities[y[row]].log() / 4
        else:
            guess = probabilities.detach() ** 2
            wanted.append(((probabilities - guess / guess.sum()) ** 2).sum() / 10)
    expected = stepped(model, said + 3.0 * sum(wanted) / 4)
    mixmatch(
        model, (x, y), trusted, epochs=1, batch=4, iterations=1, mixing=UNMIXED, augment=as_it_is, rate=0.1,
        optimizer="sgd",
    )  # fmt: skip
    assert torch.allclose(model.weight, expected[0], atol=1e-5)
    assert torch.allclose(model.bias, expected[1], atol=1e-5)


def test_fixmatch_learns_sure_answers_to_weak_views_on_strong_ones() -> None:
    x, y = few(8)
    trusted, model = half(8), linear()
    sure = model(x).detach().softmax(1).amax(1)
    threshold = float(sure[~trusted].median())
    said, agreed = 0.0, 0.0
    for row in range(8):
        logits, strong = model(x[row : row + 1]), model(1 - x[row : row + 1])
        if trusted[row]:
            said = said + F.cross_entropy(logits, y[row : row + 1]) / 4
        elif sure[row] >= threshold:
            agreed = agreed + F.cross_entropy(strong, logits.argmax(1)) / 4
    expected = stepped(model, said + 2.0 * agreed)
    fixmatch(
        model, (x, y), trusted, epochs=1, batch=4, iterations=1, fixing=Fixing(threshold - 1e-6, 2.0, 1),
        augment=as_it_is, strong=lambda x: 1 - x, rate=0.1,
    )  # fmt: skip
    assert torch.allclose(model.weight, expected[0], atol=1e-5)
    assert torch.allclose(model.bias, expected[1], atol=1e-5)


@pytest.mark.parametrize("train", [mixmatch, fixmatch])
def test_labels_that_are_not_trusted_are_never_read(train) -> None:
    x, y = few(60)
    trusted = half(60)
    ways = {"epochs": 1, "batch": 8, "iterations": 6}
    first = train(started(net, 0), (x, y), trusted, **ways)
    blind = train(started(net, 0), (x, torch.where(trusted, y, 10**6)), trusted, **ways)
    assert same_weights(first, blind)
    seen = train(started(net, 0), (x, torch.where(trusted, (y + 1) % 10, y)), trusted, **ways)
    assert not same_weights(first, seen)


def test_fixmatch_ignores_what_it_is_not_sure_of() -> None:
    x, y = few(60)
    trusted = half(60)
    noise = torch.where(trusted[:, None, None, None], x, torch.rand_like(x))
    for threshold, equal in ((1.1, True), (0.0, False)):
        ways = {"epochs": 1, "batch": 8, "iterations": 4, "fixing": Fixing(threshold=threshold)}
        models = [fixmatch(started(net, 0), (rows, y), trusted, **ways) for rows in (x, noise)]
        assert same_weights(*models) == equal


def test_with_every_row_trusted_and_nothing_mixed_it_is_plain_training() -> None:
    x, y = few(64)
    everything = torch.ones(64, dtype=torch.bool)
    plain = fit(started(net, 0), (x, y), epochs=3, batch=64, rate=constant(0.05))
    same = mixmatch(
        started(net, 0), (x, y), everything, epochs=3, batch=64, mixing=UNMIXED, augment=as_it_is, rate=0.05,
        optimizer="sgd",
    )  # fmt: skip
    other = fixmatch(started(net, 0), (x, y), everything, epochs=3, batch=64, augment=as_it_is, rate=0.05)
    for model in (same, other):
        for one, two in zip(plain.parameters(), model.parameters(), strict=True):
            assert torch.allclose(one, two, atol=1e-4)


def test_rows_are_split_anew_every_epoch_and_the_optimizer_goes_on() -> None:
    x, y = few(60)
    asked: list[int] = []

    def split(epoch: int) -> Tensor:
        asked.append(epoch)
        return half(60)

    ways = {"epochs": 3, "batch": 8, "iterations": 4}
    again = mixmatch(started(net, 0), (x, y), split, **ways)
    assert asked == [0, 1, 2]
    assert not again.training
    wrong = [torch.zeros(60, dtype=torch.bool), torch.ones(60), torch.ones(59, dtype=torch.bool)]
    for trusted in wrong:
        with pytest.raises(ValueError, match="at least one trusted row"):
            mixmatch(started(net, 0), (x, y), trusted, **ways)


def test_a_call_leaves_the_random_state_and_the_rows_alone() -> None:
    pixels = (few(40)[0] * 255).round().to(torch.uint8)
    y = few(40)[1]
    before, state = pixels.clone(), torch.random.get_rng_state()
    held = mixmatch(started(net, 0), (pixels, y), half(40), epochs=1, batch=8)
    floats = mixmatch(started(net, 0), (pixels.float() / 255, y), half(40), epochs=1, batch=8)
    assert same_weights(held, floats)
    assert torch.equal(pixels, before)
    assert torch.equal(torch.random.get_rng_state(), state)
