"""Feature collision against the closed form where features are pixels, and against a victim that keeps its features."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from trigger_problems import assert_drawn_by_seed_alone, in_bytes, pictures

from buckler.data import Rows, digits
from buckler.nets import SmallCNN
from buckler.poisoning._look import features
from buckler.poisoning._nudge import shared_out
from buckler.poisoning.feature_collision import feature_collision
from buckler.threat import Share
from buckler.train import fit, started

TEN = Share(0.1)
PREY = torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(7)), torch.tensor([2, 3])


def pictured() -> nn.Module:
    return SmallCNN(width=2, classes=4)


def pixels() -> nn.Module:
    """A network whose features are the pixels."""
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 4))


@pytest.mark.parametrize("beta", [0.0, 0.25, 64.0])
def test_where_features_are_pixels_the_end_has_a_closed_form(beta) -> None:
    x, y = pictures()
    found = feature_collision((x, y), share=TEN, net=pixels, prey=PREY, beta=beta, watermark=0.0, epochs=0)
    for label, target in zip((2, 3), PREY[0], strict=True):
        mine = found.rows & (y == label)
        assert int(mine.sum()) == 3
        base = x[mine]
        near, far = 1 / (base - target).square().sum((1, 2, 3), keepdim=True), beta / 64
        assert torch.allclose(found.x[mine], (near * target + far * base) / (near + far), atol=2e-3)


def test_the_watermark_is_where_it_starts() -> None:
    x, y = pictures()
    found = feature_collision((x, y), share=TEN, net=pixels, prey=PREY, steps=0, watermark=0.4, epochs=0)
    for label, target in zip((2, 3), PREY[0], strict=True):
        mine = found.rows & (y == label)
        assert torch.allclose(found.x[mine], 0.6 * x[mine] + 0.4 * target, atol=1e-6)


@pytest.mark.parametrize("bytes_", [False, True])
def test_only_rows_of_the_wanted_classes_move_and_no_further_than_the_radius(bytes_) -> None:
    x, y = in_bytes(pictures()) if bytes_ else pictures()
    found = feature_collision((x, y), share=TEN, net=pictured, prey=PREY, radius=16 / 255, epochs=1, steps=20)
    assert found.x.dtype == x.dtype
    assert torch.equal(found.y, y)
    assert torch.equal(found.original, y)
    assert torch.bincount(y[found.rows], minlength=4).tolist() == [0, 0, 3, 3]
    assert torch.equal(found.x[~found.rows], x[~found.rows])
    moved = (found.x.float() - x.float())[found.rows].abs() / (255 if bytes_ else 1)
    assert 15 / 255 < moved.amax() <= 16 / 255 + 1e-6
    assert found.trigger is None
    assert found.prey is not None
    assert torch.equal(found.prey[0], PREY[0])
    assert torch.equal(found.prey[1], PREY[1])


def test_two_prey_of_one_class_have_rows_of_their_own() -> None:
    x, y = pictures()
    prey = PREY[0], torch.tensor([2, 2])
    found = feature_collision((x, y), share=TEN, net=pixels, prey=prey, beta=0.0, watermark=0.0, epochs=0)
    assert torch.bincount(y[found.rows], minlength=4).tolist() == [0, 0, 6, 0]
    closest = torch.cdist(found.x[found.rows].flatten(1), PREY[0].flatten(1)).argmin(1)
    assert torch.bincount(closest).tolist() == [3, 3]


def test_a_share_is_divided_evenly() -> None:
    assert shared_out(7, 3) == [3, 2, 2]
    assert shared_out(3, 3) == [1, 1, 1]
    with pytest.raises(ValueError, match="at least 3 rows, one per prey"):
        shared_out(2, 3)


def test_a_victim_that_keeps_the_features_takes_the_prey_for_the_wanted_class() -> None:
    x, y = digits(train=True)
    network = fit(started(lambda: SmallCNN(width=16), 0), (x, y), epochs=8, batch=64, rate=0.05)
    mine = (y == 4) | (y == 9)
    x, y = x[mine][:80], (y[mine][:80] == 9).long()  # fewer rows than features, as where the paper transfers
    test_x, test_y = digits(train=False)
    for four in test_x[test_y == 4][:2]:
        prey = four[None], torch.tensor([1])
        found = feature_collision((x, y), share=TEN, net=lambda: copy.deepcopy(network), prey=prey, epochs=0)
        aim, before, after = (seen(network, z) for z in (prey[0], x[found.rows], found.x[found.rows]))
        assert ((after - aim).norm(dim=1) < 0.1 * (before - aim).norm(dim=1)).all()
        assert chance(network, (x, y), prey[0]) < 0.1
        assert chance(network, found.seen, prey[0]) > 0.5


def seen(network: nn.Module, x: Tensor) -> Tensor:
    return features(network, (x, torch.zeros(len(x), dtype=torch.long)))


def chance(network: nn.Module, data: Rows, prey: Tensor) -> float:
    """What probability of class 1 a new last layer on the same features, trained on `data`, gives the prey."""
    inputs = seen(network, data[0])
    head = started(lambda: nn.Linear(inputs.shape[1], 2), 1)
    fit(head, (inputs, data[1]), epochs=150, batch=32, rate=0.02, decay=0.0)
    with torch.no_grad():
        return float(head(seen(network, prey)).softmax(1)[0, 1])


def test_the_network_given_is_not_changed() -> None:
    network = pictured().train()
    before = copy.deepcopy(network.state_dict())
    feature_collision(pictures(), share=TEN, net=lambda: network, prey=PREY, epochs=0, steps=3)
    assert network.training
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())
    assert all(p.requires_grad and p.grad is None for p in network.parameters())


def test_the_seed_alone_draws() -> None:
    assert_drawn_by_seed_alone(feature_collision, pictures(), share=TEN, net=pictured, prey=PREY, epochs=1, steps=3)


@pytest.mark.parametrize(
    ("knobs", "said"),
    [
        ({"prey": None}, "expected prey, inputs"),
        ({"prey": (PREY[0][:, :, :7], PREY[1])}, "expected prey of shape"),
        ({"prey": (PREY[0], torch.tensor([2, 4]))}, "wanted labels of 0 to 3"),
        ({"watermark": 1.0}, "a watermark of at least 0"),
        ({"radius": 0.0}, "a radius above 0"),
        ({"radius": float("nan")}, "a radius above 0"),
        ({"beta": -1.0}, "beta and steps >= 0"),
        ({"steps": -1}, "beta and steps >= 0"),
        ({"share": Share(0.01)}, "one per prey"),
        ({"share": Share(0.9)}, "ask for a smaller share"),
        ({"net": lambda: nn.Sequential(nn.Conv2d(1, 4, 8), nn.Flatten()), "epochs": 0}, "a linear layer"),
    ],
)
def test_bad_knobs(knobs, said) -> None:
    with pytest.raises(ValueError, match=said):
        feature_collision(pictures(), **{"share": TEN, "net": pictured, "prey": PREY, **knobs})


def test_bad_data() -> None:
    x, y = pictures()
    with pytest.raises(ValueError, match="at least two classes"):
        feature_collision((x, torch.zeros_like(y)), share=TEN, net=pictured, prey=PREY)
    with pytest.raises(ValueError, match="expected images"):
        feature_collision((x.flatten(1), y), share=TEN, net=pictured, prey=PREY)
