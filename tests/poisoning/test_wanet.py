"""WaNet against a bilinear sampler written as loops, at places read off pictures of their own coordinates."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from trigger_problems import (
    TEN,
    assert_rows_are_as_said,
    check_a_network_learns,
    check_a_trigger,
    in_bytes,
    pictures,
    trained,
)

from buckler.data import digits
from buckler.poisoning.wanet import wanet
from buckler.threat import Share


def coordinates(height: int, width: int) -> Tensor:
    """A picture of two channels whose values are the place across and down, in [0, 1]: a warp of it is the warp."""
    down, across = torch.meshgrid(torch.linspace(0, 1, height), torch.linspace(0, 1, width), indexing="ij")
    return torch.stack([across, down])


def bilinear(image: Tensor, places: Tensor) -> Tensor:
    """`image` `(C, H, W)` taken at `places` `(2, H, W)` in [0, 1], one pixel at a time."""
    channels, height, width = image.shape
    out = torch.zeros_like(image)
    for i in range(height):
        for j in range(width):
            u, v = float(places[0, i, j]) * (width - 1), float(places[1, i, j]) * (height - 1)
            left, top = min(int(u), width - 2), min(int(v), height - 2)
            a, b = u - left, v - top
            for c in range(channels):
                upper = (1 - a) * image[c, top, left] + a * image[c, top, left + 1]
                lower = (1 - a) * image[c, top + 1, left] + a * image[c, top + 1, left + 1]
                out[c, i, j] = (1 - b) * upper + b * lower
    return out


@pytest.mark.parametrize(("height", "width"), [(8, 8), (7, 10)])
def test_it_is_one_bilinear_warp_of_every_picture(height, width) -> None:
    data = pictures(channels=2, height=height, width=width)
    trigger = wanet(data, share=TEN, strength=2.0).trigger
    places = trigger(coordinates(height, width)[None])[0]
    assert not torch.allclose(places, coordinates(height, width), atol=0.01)
    for image in data[0][:4]:
        assert torch.allclose(trigger(image[None])[0], bilinear(image, places), atol=1e-5)


def test_the_warp_has_the_length_asked_for() -> None:
    """With a control point per pixel nothing is made smooth: the mean length is strength / side in [-1, 1]."""
    data = pictures(channels=2, height=32, width=32)
    plain = coordinates(32, 32)

    def moved(**knobs: float) -> Tensor:
        return 2 * (wanet(data, share=TEN, **knobs).trigger(plain[None])[0] - plain)[:, 1:-1, 1:-1]

    assert float(moved(control=32).abs().mean()) == pytest.approx(0.5 / 32, rel=0.05)
    assert torch.allclose(moved(control=4, strength=0.8), 2 * moved(control=4, strength=0.4), atol=1e-5)
    steps = moved(control=4)
    assert (steps[:, :, 1:] - steps[:, :, :-1]).abs().mean() < 0.3 * steps.abs().mean(), "four points make it smooth"


def test_a_plain_picture_is_not_changed() -> None:
    grey = torch.full((2, 1, 8, 8), 0.4)
    assert torch.allclose(wanet(pictures(), share=TEN, strength=3.0).trigger(grey), grey, atol=1e-6)


def test_covers_have_noise_of_their_own_and_their_own_labels() -> None:
    y = pictures()[1]
    x = coordinates(8, 8).expand(60, -1, -1, -1).clone()
    poisoned = wanet((x, y), share=TEN, cross_ratio=2.0)
    covers = poisoned.covers
    assert int(poisoned.poison.sum()) == 6
    assert int(covers.sum()) == 12
    assert not (covers & ~poisoned.rows).any()
    assert torch.equal(poisoned.y[covers], y[covers])
    warp = poisoned.trigger(x[:1])[0]
    assert torch.allclose(poisoned.x[poisoned.poison], warp, atol=1e-6)
    noise = 2 * (poisoned.x[covers] - warp)[:, :, 2:-2, 2:-2] * 8
    assert noise.abs().max() <= 1 + 1e-4
    assert float(noise.abs().mean()) == pytest.approx(0.5, abs=0.05), "uniform"
    assert abs(float(noise.mean())) < 0.06
    assert len(noise.flatten(1).unique(dim=0)) == 12
    assert torch.equal((poisoned.x != x).flatten(1).any(1), poisoned.rows)


def test_without_a_ratio_there_are_no_covers() -> None:
    assert not wanet(pictures(), share=TEN, cross_ratio=0.0).covers.any()


@pytest.mark.parametrize("goal", ["all_to_one", "all_to_all"])
@pytest.mark.parametrize("bytes_", [False, True])
def test_rows_are_as_said(goal, bytes_) -> None:
    data = in_bytes(pictures()) if bytes_ else pictures()
    poisoned = wanet(data, share=TEN, target=1, goal=goal, strength=2.0)
    assert_rows_are_as_said(poisoned, data)
    assert (poisoned.y != poisoned.original)[poisoned.poison].all()


def test_what_every_trigger_keeps_to() -> None:
    check_a_trigger(wanet)


def test_a_network_learns_a_strong_warp_and_one_that_never_saw_it_does_not_know_it() -> None:
    check_a_network_learns(wanet(digits(train=True), share=TEN, strength=3.0, cross_ratio=0.0))


def test_covers_teach_that_other_warps_do_not_count() -> None:
    """Test digits warped as covers are seldom get the target from a network that saw covers, and often without."""
    x, y = digits(train=False)
    (others,) = (y != 0).nonzero(as_tuple=True)
    noisy = wanet((x[others], y[others]), share=Share(1 / len(others)), strength=3.0, cross_ratio=len(others) - 1)
    answers: list[float] = []
    for cross_ratio in (0.0, 2.0):
        poisoned = wanet(digits(train=True), share=TEN, strength=3.0, cross_ratio=cross_ratio)
        model = trained(poisoned.seen)
        with torch.no_grad():
            answers.append(float((model(noisy.x[noisy.covers]).argmax(1) == 0).float().mean()))
    assert answers[0] > 0.9
    assert answers[1] < 0.6


@pytest.mark.parametrize(
    ("knobs", "said"),
    [
        ({"control": 1}, "2 or more points"),
        ({"strength": 0.0}, "a positive strength"),
        ({"grid_rescale": 0.0}, "a positive strength"),
        ({"cross_ratio": -1.0}, "a cross_ratio of 0 or more"),
        ({"target": 4}, "target class of 0 to 3"),
        ({"share": Share(0.9)}, "ask for a smaller share"),
        ({"share": Share(0.5)}, "to warp with noise"),
    ],
)
def test_bad_knobs(knobs, said) -> None:
    with pytest.raises(ValueError, match=said):
        wanet(pictures(), **{"share": TEN, **knobs})


def test_bad_data() -> None:
    x, y = pictures()
    with pytest.raises(ValueError, match="2 or more points and pixels"):
        wanet((x[:, :, :1], y), share=TEN)
