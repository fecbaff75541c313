"""Noisy features: how large the noise is, and that asking again tells no more."""

from __future__ import annotations

import pytest
import torch
from stealing_worlds import random_encoder, rows

from buckler.encoders.noisy_features import noisy_features


def test_noise_is_as_large_as_it_says_and_the_same_for_the_same_image() -> None:
    model, x = random_encoder(0, 400), rows(30)[0]
    model.requires_grad_(False)
    plain = model(x)
    guard = noisy_features(model, scale=0.5)
    noise = guard(x) - plain
    ratio = noise.square().mean(1).sqrt() / plain.square().mean(1).sqrt()
    assert float((ratio - 0.5).abs().max()) < 0.08
    assert torch.allclose(guard(x[3:5]), guard(x)[3:5], atol=1e-5)
    assert not torch.allclose(noisy_features(model, scale=0.5, seed=1)(x), guard(x))
    assert torch.equal(noisy_features(model, scale=0)(x), plain)
    assert abs(float(noise.mean())) < 0.01


def test_a_scale_below_nothing_is_said() -> None:
    with pytest.raises(ValueError, match="scale of 0 or more, got -1"):
        noisy_features(random_encoder(0), scale=-1)
