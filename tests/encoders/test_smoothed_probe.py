"""The certificate of a smoothed probe, where it is known: above a linear encoder nothing is proven beyond the plane."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from buckler.encoders._smooth import noisy_probe
from buckler.encoders.smoothed_probe import smoothed_probe
from buckler.kinds import ABSTAIN
from buckler.nets import LinearModel

SIGMA = 0.25


def test_nothing_is_proven_beyond_the_plane_and_much_of_what_is_true() -> None:
    draw = torch.Generator().manual_seed(0)
    y = torch.arange(80) % 2
    x = (0.3 + 0.4 * y[:, None] + 0.05 * torch.randn(80, 4, generator=draw)).clamp(0, 1)
    encoder = nn.Linear(4, 4)
    with torch.no_grad():
        encoder.weight.copy_(torch.eye(4))
        encoder.bias.zero_()
    label, radius, norm = smoothed_probe(encoder, x, data=(x, y), sigma=SIGMA, samples=2000)
    above = noisy_probe(encoder, (x, y), classes=2, sigma=SIGMA, copies=4, seed=0).probe
    plane = LinearModel(
        above.linear.weight / above.deviation,
        above.linear.bias - above.linear.weight @ (above.mean / above.deviation),
    )
    far = plane.distances(x, y, "l2")
    sure = label != ABSTAIN
    assert norm == "l2"
    assert float((label == y).double().mean()) > 0.95
    assert bool((radius <= far + 1e-5)[sure].all())
    assert float((radius / far)[sure].median()) > 0.7


def test_a_probe_learns_from_something() -> None:
    x, y = torch.rand(4, 4), torch.tensor([0, 1, 0, 1])
    with pytest.raises(ValueError, match="at least one noisy copy"):
        smoothed_probe(nn.Identity(), x, data=(x, y), copies=0)
