"""Rounded features: digits as parts of the length, and rows that would lose everything."""

from __future__ import annotations

import pytest
import torch
from stealing_worlds import random_encoder, rows
from torch import nn

from buckler.encoders.rounded_features import rounded_features


def test_parts_of_the_length_have_few_digits() -> None:
    model, x = random_encoder(0), rows(20)[0]
    model.requires_grad_(False)
    plain, shown = model(x), rounded_features(model, digits=1)(x)
    parts = 10 * shown / plain.norm(dim=1, keepdim=True)
    assert torch.allclose(parts, parts.round(), atol=1e-4)
    assert float((shown - plain).abs().max()) <= 0.0501 * float(plain.norm(dim=1).max())
    assert torch.allclose(rounded_features(model, digits=6)(x), plain, atol=1e-5)


def test_something_is_left_of_every_row() -> None:
    even = rounded_features(nn.Flatten(), digits=1)
    shown = even(torch.full((2, 1, 30, 30), 0.3))
    assert (shown != 0).sum(1).tolist() == [1, 1]
    with pytest.raises(ValueError, match="1 to 6 digits, got 0"):
        rounded_features(random_encoder(0), digits=0)
