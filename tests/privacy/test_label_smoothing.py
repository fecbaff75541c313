"""Label smoothing: no more confidence than labels are given, and the best loss is that of smoothed labels."""

from __future__ import annotations

import pytest
import torch
from membership_worlds import bright, net, noise

from buckler.privacy.label_smoothing import label_smoothing


def test_nothing_is_answered_with_more_confidence_than_its_label_has() -> None:
    """Learnt by heart, a row's own probability is 1 - s + s / K; weight decay holds it a little below."""
    x, y = bright(200)
    for smoothing in (0.2, 0.4):
        model = label_smoothing((x, y), net=net, smoothing=smoothing, epochs=60, batch=50).model
        own = model(x).detach().softmax(1).gather(1, y[:, None])
        assert 1 - smoothing * 3 / 4 - 0.08 < float(own.median()) < 1 - smoothing * 3 / 4 + 0.02


def test_without_smoothing_it_is_the_plain_loop() -> None:
    from buckler.train import fit, started

    data = noise(40)
    mine = label_smoothing(data, net=net, smoothing=0.0, epochs=2, seed=3).model
    plain = fit(started(net, 3), data, epochs=2, seed=3)
    assert all(torch.equal(a, b) for a, b in zip(mine.parameters(), plain.parameters(), strict=True))


def test_it_promises_nothing_and_refuses_what_is_no_share() -> None:
    assert label_smoothing(noise(20), net=net, epochs=1).epsilon is None
    for smoothing in (-0.1, 1.0):
        with pytest.raises(ValueError, match="expected smoothing of 0 or more and below 1"):
            label_smoothing(noise(20), net=net, smoothing=smoothing)
