"""Unlearnable examples: the noise obeys its limit, is easy for the network, and keeps another one from learning."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from trigger_problems import accuracy, assert_drawn_by_seed_alone, in_bytes, pictures, trained

from buckler.data import Rows, digits
from buckler.nets import LinearModel, SmallCNN
from buckler.poisoning.unlearnable import _looked, unlearnable
from buckler.threat import Share

HALF = Share(0.5)


def pictured() -> nn.Module:
    return SmallCNN(width=4, classes=4)


def wide() -> nn.Module:
    return SmallCNN(width=8)


@pytest.mark.parametrize("noise", ["samplewise", "classwise"])
@pytest.mark.parametrize("bytes_", [False, True])
def test_the_noise_stays_within_its_radius_on_its_rows(noise, bytes_) -> None:
    x, y = in_bytes(pictures()) if bytes_ else pictures()
    found = unlearnable((x, y), net=pictured, share=HALF, noise=noise, rounds=2)
    assert found.x.dtype == x.dtype
    assert int(found.rows.sum()) == 30
    assert torch.equal(found.x[~found.rows], x[~found.rows])
    assert torch.equal(found.y, y)
    assert torch.equal(found.original, y)
    assert found.trigger is None
    assert found.prey is None
    moved = (found.x.float() - x.float())[found.rows].abs() / (255 if bytes_ else 1)
    assert 7 / 255 < moved.amax() <= 8 / 255 + 1e-6
    assert found.x.amin() >= 0
    assert found.x.amax() <= (255 if bytes_ else 1)


def test_by_default_all_rows_are_touched() -> None:
    assert unlearnable(pictures(), net=pictured, rounds=1, noise_steps=1).rows.all()


def test_rows_of_a_class_share_one_noise_and_others_do_not() -> None:
    x, y = pictures()
    x = 0.2 + 0.6 * x  # away from the edges of the box
    for noise, same in (("classwise", True), ("samplewise", False)):
        found = unlearnable((x, y), net=pictured, noise=noise, rounds=2)
        added = found.x - x
        assert torch.allclose(added[0], added[4], atol=1e-6) == same
        assert not torch.allclose(added[0], added[1], atol=1e-3)


@pytest.mark.parametrize("noise", ["samplewise", "classwise"])
def test_the_way_up_is_the_sum_over_the_rows_of_a_noise(noise) -> None:
    torch.manual_seed(0)
    model = LinearModel(torch.randn(3, 5), torch.randn(3))
    clean, labels = 0.3 + 0.4 * torch.rand(700, 5), torch.randint(3, (700,))
    owner = torch.arange(700) if noise == "samplewise" else labels
    added = 0.1 * torch.randn(700 if noise == "samplewise" else 3, 5)
    upwards, wrong = _looked(model, clean, added, labels, owner)
    naive, missed = torch.zeros_like(added), 0
    for row in range(700):
        said = model((clean[row] + added[owner[row]]).clamp(0, 1)[None])[0]
        naive[owner[row]] += (said.softmax(0) - F.one_hot(labels[row], 3)).detach() @ model.weight.detach()
        missed += int(said.argmax() != labels[row])
    assert torch.allclose(upwards, naive, atol=1e-4)
    assert wrong == pytest.approx(missed / 700)


def some_digits() -> Rows:
    x, y = digits(train=True)
    return x[:600], y[:600]


@pytest.mark.parametrize("noise", ["samplewise", "classwise"])
def test_a_network_learns_the_noise_instead_of_the_digits(noise) -> None:
    x, y = some_digits()
    found = unlearnable((x, y), net=wide, noise=noise, radius=0.25, rounds=6, error=0.0)
    draws = torch.Generator().manual_seed(1)
    random = (x + 0.25 * (torch.rand(x.shape, generator=draws) * 2 - 1).sign()).clamp(0, 1)
    hindered = accuracy(trained(found.seen))
    assert hindered < 0.8
    assert hindered < accuracy(trained((random, y))) - 0.15, "as much noise that is random hinders less"


def test_more_error_allowed_is_fewer_rounds() -> None:
    many = []

    def counted() -> nn.Module:
        model = SmallCNN(width=2, classes=4)
        model.register_forward_pre_hook(lambda module, _inputs: many.append(module.training))
        return model

    unlearnable(pictures(), net=counted, rounds=4, noise_steps=1, train_steps=3, error=0.999)
    once = sum(many)
    many.clear()
    unlearnable(pictures(), net=counted, rounds=4, noise_steps=1, train_steps=3, error=0.0, radius=1e-6)
    assert (once, sum(many)) == (3, 12)


def test_the_seed_alone_draws() -> None:
    assert_drawn_by_seed_alone(unlearnable, pictures(), net=pictured, share=HALF, rounds=2, noise_steps=2)


@pytest.mark.parametrize(
    ("knobs", "said"),
    [
        ({"radius": 0.0}, "a radius above 0"),
        ({"radius": float("nan")}, "a radius above 0"),
        ({"rounds": 0}, "at least one round"),
        ({"train_steps": 0}, "at least one round and step"),
        ({"noise_steps": 0}, "at least one round and step"),
        ({"error": 1.0}, "below 1"),
        ({"noise": "rowwise"}, "samplewise or classwise"),
    ],
)
def test_bad_knobs(knobs, said) -> None:
    with pytest.raises(ValueError, match=said):
        unlearnable(pictures(), **{"net": pictured, **knobs})


def test_bad_data() -> None:
    x, y = pictures()
    with pytest.raises(ValueError, match="at least two classes"):
        unlearnable((x, torch.zeros_like(y)), net=pictured)
    with pytest.raises(ValueError, match="expected images"):
        unlearnable((x.flatten(1), y), net=pictured)
