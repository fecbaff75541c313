"""Low frequency against scipy's cosine transform, and against a network that knows nothing of the field."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch
from scipy.fft import dctn
from torch.nn import functional as F
from trigger_problems import (
    TEN,
    assert_drawn_by_seed_alone,
    assert_rows_are_as_said,
    check_a_network_learns,
    check_a_trigger,
    in_bytes,
    pictures,
    unpoisoned,
)

from buckler.data import digits
from buckler.nets import SmallCNN
from buckler.poisoning.low_frequency import low_frequency
from buckler.threat import Share

NET = partial(SmallCNN, width=8)


@pytest.mark.parametrize(("height", "width", "cutoff"), [(8, 8, 4), (12, 9, 2), (16, 16, 5)])
def test_the_field_has_no_high_frequencies_and_the_size_asked_for(height, width, cutoff) -> None:
    data = pictures(channels=2, height=height, width=width)
    field = low_frequency(data, share=TEN, amplitude=0.3, cutoff=cutoff).trigger(torch.zeros(1, 2, height, width))[0]
    assert float(field.amax()) == pytest.approx(0.3)
    assert float(field.amin()) == pytest.approx(0.0, abs=1e-6)
    spectrum = np.abs(dctn(field.double().numpy(), axes=(1, 2), norm="ortho"))
    assert spectrum[:, cutoff:].max() < 1e-5
    assert spectrum[:, :, cutoff:].max() < 1e-5
    assert spectrum[:, :cutoff, :cutoff].min() > 1e-5, "and all of the low ones"


def test_it_is_added_and_cut_at_white() -> None:
    data = pictures()
    trigger = low_frequency(data, share=TEN).trigger
    field = trigger(torch.zeros(1, 1, 8, 8))[0]
    for image in data[0][:5]:
        assert torch.allclose(trigger(image[None])[0], (image + field).clamp(max=1), atol=1e-6)


def test_a_field_found_for_a_network_leads_another_network_and_stays_low() -> None:
    train, clean = digits(train=True), unpoisoned()
    drawn = low_frequency(train, share=TEN, target=3)
    found = low_frequency(train, share=TEN, target=3, net=NET, epochs=5, rate=0.05)
    x, y = digits(train=False)

    def loss(trigger: object) -> float:
        with torch.no_grad():
            return float(F.cross_entropy(clean(trigger(x)), torch.full_like(y, 3)))  # type: ignore[operator]

    assert loss(found.trigger) < loss(drawn.trigger) - 0.5
    field = found.trigger(torch.zeros(1, 1, 8, 8))[0]
    assert float(field.amax()) == pytest.approx(0.2)
    assert np.abs(dctn(field.double().numpy(), axes=(1, 2)))[:, 4:].max() < 1e-5
    assert torch.equal(found.rows, drawn.rows)


@pytest.mark.parametrize("bytes_", [False, True])
def test_rows_are_as_said(bytes_) -> None:
    data = in_bytes(pictures()) if bytes_ else pictures()
    poisoned = low_frequency(data, share=TEN, target=1)
    assert_rows_are_as_said(poisoned, data)
    assert int(poisoned.rows.sum()) == 6
    assert (poisoned.original[poisoned.rows] != 1).all()
    assert (poisoned.y[poisoned.rows] == 1).all()


def test_what_every_trigger_keeps_to() -> None:
    check_a_trigger(low_frequency)


def test_the_seed_alone_draws_beside_a_network() -> None:
    assert_drawn_by_seed_alone(low_frequency, pictures(), share=TEN, net=NET, epochs=1, passes=1)


def test_a_network_learns_it_and_one_that_never_saw_it_does_not() -> None:
    check_a_network_learns(low_frequency(digits(train=True), share=TEN, amplitude=0.4), clean=0.3)


@pytest.mark.parametrize(
    ("knobs", "said"),
    [
        ({"amplitude": 0.0}, "an amplitude above 0"),
        ({"amplitude": 2.0}, "an amplitude above 0"),
        ({"cutoff": 1}, "a cutoff of 2 to 8"),
        ({"cutoff": 9}, "a cutoff of 2 to 8"),
        ({"target": 4}, "target class of 0 to 3"),
        ({"share": Share(0.9)}, "ask for a smaller share"),
        ({"net": lambda: None}, "returns an untrained nn.Module"),
    ],
)
def test_bad_knobs(knobs, said) -> None:
    with pytest.raises(ValueError, match=said):
        low_frequency(pictures(), **{"share": TEN, **knobs})
