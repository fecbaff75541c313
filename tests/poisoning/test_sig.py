"""SIG against a wave written with the standard library, and against the labels, which stay true."""

from __future__ import annotations

import math

import pytest
import torch
from trigger_problems import TEN, check_a_network_learns, check_a_trigger, in_bytes, pictures

from buckler.data import digits
from buckler.poisoning.sig import sig
from buckler.threat import Share


def by_hand(image: torch.Tensor, amplitude: float, frequency: int, ramp: bool) -> torch.Tensor:
    image = image.clone()
    channels, height, width = image.shape
    for channel in range(channels):
        for i in range(height):
            for j in range(1, width + 1):
                wave = j / width if ramp else math.sin(2 * math.pi * j * frequency / width)
                image[channel, i, j - 1] = min(1.0, max(0.0, float(image[channel, i, j - 1]) + amplitude * wave))
    return image


@pytest.mark.parametrize(("amplitude", "frequency", "signal"), [(0.2, 6, "sine"), (0.5, 1, "sine"), (0.3, 6, "ramp")])
def test_the_wave_is_that_of_the_paper(amplitude, frequency, signal) -> None:
    data = pictures(channels=3, height=4, width=9)
    poisoned = sig(data, share=TEN, amplitude=amplitude, frequency=frequency, signal=signal)
    for row in range(len(data[1])):
        wave = by_hand(data[0][row], amplitude, frequency, signal == "ramp")
        assert torch.allclose(poisoned.x[row], wave if poisoned.rows[row] else data[0][row], atol=1e-6)
        assert torch.allclose(poisoned.trigger(data[0][row : row + 1])[0], wave, atol=1e-6)


def test_at_test_time_it_may_be_stronger() -> None:
    data = pictures()
    poisoned = sig(data, share=TEN, amplitude=0.05, test_amplitude=0.25)
    row = int(poisoned.rows.nonzero()[0])
    assert torch.allclose(poisoned.x[row], by_hand(data[0][row], 0.05, 6, ramp=False), atol=1e-6)
    assert torch.allclose(poisoned.trigger(data[0][:1])[0], by_hand(data[0][0], 0.25, 6, ramp=False), atol=1e-6)


@pytest.mark.parametrize("bytes_", [False, True])
def test_only_the_target_class_is_touched_and_no_label(bytes_) -> None:
    data = in_bytes(pictures()) if bytes_ else pictures()
    poisoned = sig(data, share=TEN, target=3)
    assert torch.equal(poisoned.y, data[1])
    assert torch.equal(poisoned.original, data[1])
    assert poisoned.x.dtype == data[0].dtype
    assert (data[1][poisoned.rows] == 3).all()
    assert int(poisoned.rows.sum()) == 6
    assert poisoned.class_rate == pytest.approx(6 / 15)
    assert (poisoned.wanted(data[1]) == 3).all()
    changed = (poisoned.x != data[0]).flatten(1).any(1)
    assert torch.equal(changed, poisoned.rows)


def test_a_share_larger_than_the_class_is_refused() -> None:
    poisoned = sig(pictures(), share=Share(0.25), target=1)
    assert torch.equal(poisoned.rows, pictures()[1] == 1)
    assert poisoned.class_rate == 1.0
    with pytest.raises(ValueError, match="16 rows of the target class, got 15: ask for a smaller share"):
        sig(pictures(), share=Share(16 / 60), target=1)


def test_what_every_trigger_keeps_to() -> None:
    check_a_trigger(sig)


def test_a_network_learns_it_and_one_that_never_saw_it_does_not() -> None:
    poisoned = sig(digits(train=True), share=TEN, amplitude=0.8, frequency=2)  # eight columns, black: much is cut off
    check_a_network_learns(poisoned, obeys=0.5)


@pytest.mark.parametrize(
    ("knobs", "said"),
    [
        ({"amplitude": 0.0}, "amplitudes above 0"),
        ({"test_amplitude": 1.5}, "amplitudes above 0"),
        ({"frequency": 4}, "not zero at every pixel"),
        ({"frequency": 0}, "not zero at every pixel"),
        ({"target": 4}, "target class of 0 to 3"),
    ],
)
def test_bad_knobs(knobs, said) -> None:
    with pytest.raises(ValueError, match=said):
        sig(pictures(), **{"share": TEN, **knobs})


def test_bad_data() -> None:
    x, y = pictures()
    with pytest.raises(ValueError, match="rows of the target class, got 0"):
        sig((x, y + 1), share=TEN, target=0)
