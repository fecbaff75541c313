"""Gradient matching against a naive cosine, and against a victim that learns the prey's label from it."""

from __future__ import annotations

import copy
from functools import partial

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from trigger_problems import assert_drawn_by_seed_alone, in_bytes, pictures

from buckler.augment import flip
from buckler.data import Rows, digits
from buckler.nets import LinearModel, SmallCNN
from buckler.poisoning.gradient_matching import _mismatch, gradient_matching
from buckler.threat import Share
from buckler.train import fit, started

TEN = Share(0.1)
PREY = torch.rand(3, 1, 8, 8, generator=torch.Generator().manual_seed(7)), torch.tensor([2, 3, 3])


def pictured() -> nn.Module:
    return SmallCNN(width=2, classes=4)


def quick(data, **knobs):
    return gradient_matching(data, **{"share": TEN, "net": pictured, "prey": PREY, "steps": 4, "restarts": 2, **knobs})


def test_the_mismatch_is_one_minus_the_cosine() -> None:
    torch.manual_seed(0)
    model = LinearModel(torch.randn(3, 4), torch.randn(3))
    x, prey = torch.rand(5, 4), torch.rand(2, 4)

    def gradient(rows):  # of softmax regression: (p - 1[y]) x for the weights, p - 1[y] for the bias
        total = torch.zeros(3, 5)
        for row in rows:
            slope = model(row[None]).detach().softmax(1)[0] - F.one_hot(torch.tensor(1), 3)
            total += slope[:, None] * torch.cat([row, torch.ones(1)]) / len(rows)
        return total.flatten()

    expected = 1 - F.cosine_similarity(gradient(x), gradient(prey), dim=0)
    found = _mismatch(model, 1, prey, None)(x)
    assert torch.allclose(found, expected, atol=1e-6)
    assert float(_mismatch(model, 1, prey, None)(prey).detach()) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("bytes_", [False, True])
def test_only_rows_of_the_wanted_classes_move_and_no_further_than_the_radius(bytes_) -> None:
    x, y = in_bytes(pictures()) if bytes_ else pictures()
    found = quick((x, y), radius=8 / 255, epochs=1)
    assert found.x.dtype == x.dtype
    assert torch.equal(found.y, y)
    assert torch.equal(found.original, y)
    assert torch.bincount(y[found.rows], minlength=4).tolist() == [0, 0, 3, 3]
    assert torch.equal(found.x[~found.rows], x[~found.rows])
    moved = (found.x.float() - x.float())[found.rows].abs() / (255 if bytes_ else 1)
    assert 7 / 255 < moved.amax() <= 8 / 255 + 1e-6
    assert found.trigger is None
    assert torch.equal(found.prey[0], PREY[0])
    assert torch.equal(found.prey[1], PREY[1])


def learnt(data: Rows, seed: int) -> nn.Module:
    return fit(started(lambda: SmallCNN(width=8), seed), data, epochs=15, batch=64, rate=0.05)


@pytest.fixture(scope="module")
def hunt() -> tuple[Rows, nn.Module, Rows]:
    """Digits, a network that learnt them, and a test digit that it is not quite sure of with the runner-up's label."""
    x, y = digits(train=True)
    network = learnt((x[:600], y[:600]), 5)
    test_x, test_y = digits(train=False)
    with torch.no_grad():
        first, second = network(test_x).topk(2, 1).values.T
        label = network(test_x).topk(2, 1).indices
    margin = (first - second).masked_fill(label[:, 0] != test_y, torch.inf)
    row = margin.argsort()[20:21]
    return (x[:600], y[:600]), network, (test_x[row], label[row, 1])


def test_more_steps_and_more_restarts_match_better(hunt) -> None:
    data, network, prey = hunt
    miss = _mismatch(network, int(prey[1]), prey[0], None)

    def missed(**knobs) -> float:
        copied = partial(copy.deepcopy, network)
        found = gradient_matching(data, share=Share(0.02), net=copied, prey=prey, epochs=0, radius=0.1, **knobs)
        return float(miss(found.x[found.rows]).detach())

    none, some, more = (missed(steps=steps, restarts=1) for steps in (0, 5, 60))
    assert none > 1.3 * some > 1.3 * 1.3 * more
    assert missed(steps=5, restarts=4) <= some


def test_victims_that_never_were_the_surrogate_come_closer_to_the_wanted_label(hunt) -> None:
    data, network, prey = hunt
    copied = partial(copy.deepcopy, network)
    found = gradient_matching(
        data, share=Share(0.08), net=copied, prey=prey, radius=0.2, steps=60, restarts=1, epochs=0
    )
    lead = []
    for rows in (data, found.seen):
        victims = [learnt(rows, seed) for seed in (11, 12)]
        with torch.no_grad():
            lead.append(sum(float(victim(prey[0]).log_softmax(1)[0, prey[1]]) for victim in victims) / 2)
    assert lead[1] > lead[0] + 0.5


def test_rows_are_matched_as_the_victim_will_see_them() -> None:
    plain, augmented = quick(pictures()), quick(pictures(), augment=flip)
    assert torch.equal(plain.rows, augmented.rows)
    assert not torch.equal(plain.x, augmented.x)


def test_the_network_given_is_not_changed() -> None:
    network = pictured().train()
    before = copy.deepcopy(network.state_dict())
    quick(pictures(), net=lambda: network, epochs=0)
    assert network.training
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())
    assert all(p.requires_grad and p.grad is None for p in network.parameters())


def test_the_seed_alone_draws() -> None:
    assert_drawn_by_seed_alone(quick, pictures(), epochs=1, augment=flip)


@pytest.mark.parametrize(
    ("knobs", "said"),
    [
        ({"prey": None}, "expected prey, inputs"),
        ({"prey": (PREY[0][:, :, :7], PREY[1])}, "expected prey of shape"),
        ({"prey": (PREY[0], torch.tensor([2, 3, 4]))}, "wanted labels of 0 to 3"),
        ({"radius": 0.0}, "a radius above 0"),
        ({"radius": float("nan")}, "a radius above 0"),
        ({"steps": -1}, "steps >= 0"),
        ({"restarts": 0}, "restarts >= 1"),
        ({"step": 0.0}, "a step above 0"),
        ({"share": Share(0.01)}, "one per prey"),
        ({"share": Share(0.9)}, "ask for a smaller share"),
        ({"net": lambda: pictured().requires_grad_(False), "epochs": 0}, "parameters that are trained"),
    ],
)
def test_bad_knobs(knobs, said) -> None:
    with pytest.raises(ValueError, match=said):
        quick(pictures(), **knobs)


def test_bad_data() -> None:
    x, y = pictures()
    with pytest.raises(ValueError, match="at least two classes"):
        quick((x, torch.zeros_like(y)))
    with pytest.raises(ValueError, match="expected images"):
        quick((x.flatten(1), y))
