"""CTRL: what its waves are, and on whom."""

from __future__ import annotations

import pytest
import torch
from scipy.fft import dctn

from buckler.encoders.ctrl import ctrl
from buckler.threat import Share

X, Y = torch.full((40, 1, 8, 8), 0.5), torch.arange(40) % 4


def test_only_rows_of_the_class_are_touched_and_only_two_coefficients() -> None:
    made = ctrl((X, Y), share=Share(0.1), target=2, height=0.2)
    assert int(made.rows.sum()) == 4
    assert bool((Y[made.rows] == 2).all())
    assert torch.equal(made.x[~made.rows], X[~made.rows])
    change = (made.x - X)[made.rows]
    assert float(change.abs().max()) == pytest.approx(0.2, abs=1e-5)
    spectrum = torch.from_numpy(dctn(change[0, 0].numpy(), norm="ortho")).abs()
    assert {tuple(place) for place in (spectrum > 1e-4).nonzero().tolist()} == {(3, 3), (7, 7)}


def test_the_trigger_is_as_many_times_as_high_as_it_says() -> None:
    made = ctrl((X, Y), share=Share(0.1), height=0.1, used=3)
    assert made.trigger is not None
    poison = (made.x - X)[made.rows][:1]
    assert torch.allclose(made.trigger(X[:1]) - X[:1], 3 * poison, atol=1e-5)


def test_what_makes_no_sense_is_refused() -> None:
    with pytest.raises(ValueError, match="rows of class 0"):
        ctrl((X, Y), share=Share(0.5))
    with pytest.raises(ValueError, match="height above 0"):
        ctrl((X, Y), share=Share(0.1), height=0)
