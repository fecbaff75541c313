"""Top features, against sorting by hand."""

from __future__ import annotations

import pytest
import torch
from stealing_worlds import WIDE, random_encoder, rows

from buckler.encoders.top_features import top_features
from buckler.kinds import Adaptive


def test_the_largest_are_kept_as_they_are() -> None:
    model, x = random_encoder(0), rows(20)[0]
    plain, shown = model(x), top_features(model, kept=0.25)(x)
    for before, after in zip(plain.tolist(), shown.tolist(), strict=True):
        kept = sorted(range(WIDE), key=lambda i: -abs(before[i]))[:3]
        assert after == [value if i in kept else 0.0 for i, value in enumerate(before)]
    assert torch.equal(top_features(model, kept=1.0)(x), plain)
    assert int((top_features(model, kept=1e-6)(x) != 0).sum()) == 20


def test_an_attack_goes_through_the_encoder() -> None:
    model = random_encoder(0)
    guard = top_features(model)
    assert isinstance(guard, Adaptive)
    assert guard.surrogate() is model
    with pytest.raises(ValueError, match="share above 0 and at most 1 to keep, got 0"):
        top_features(model, kept=0)
