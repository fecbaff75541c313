"""Feature inversion against encoders whose inputs can be told exactly, and against what it was not given."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from buckler.data import Rows
from buckler.embedding import embedded
from buckler.encoders.feature_inversion import feature_inversion
from buckler.pictures import psnr


def test_of_an_encoder_that_hides_nothing_every_pixel_is_found(unseen: Rows) -> None:
    x = unseen[0][:4]
    mixing = nn.Linear(64, 64, bias=False)
    nn.init.orthogonal_(mixing.weight, generator=torch.Generator().manual_seed(0))
    turned = nn.Sequential(nn.Flatten(), mixing)
    found = feature_inversion(turned, embedded(turned, x), shape=(1, 8, 8), smooth=0, steps=150, restarts=1).x
    assert float((found - x).abs().max()) < 0.05


def test_what_features_leave_open_is_drawn_smooth() -> None:
    """Of images of which only the left half is seen, the right half is a continuation, not noise."""

    class Left(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x[..., :4].flatten(1)

    x = torch.full((2, 1, 8, 8), 0.8)
    found = feature_inversion(Left(), Left()(x), shape=(1, 8, 8), smooth=0.1, steps=150, restarts=1).x
    rough = feature_inversion(Left(), Left()(x), shape=(1, 8, 8), smooth=0, steps=150, restarts=1).x
    assert float((found - x).abs().mean()) < 0.05
    assert float((rough - x)[..., 4:].abs().mean()) > 0.15


def test_rows_of_a_real_encoder_come_nearer_than_their_mean(encoder: nn.Module, learnt: Rows, unseen: Rows) -> None:
    """By 1.6 dB to 5.4 dB above three encoders."""
    x = unseen[0][:30]
    found = feature_inversion(encoder, embedded(encoder, x), shape=(1, 8, 8), steps=150, restarts=1).x
    own, others = psnr(found, x), psnr(found.roll(1, 0), x)
    assert float(own.median()) > float(others.median()) + 1
    assert all(parameter.requires_grad for parameter in encoder.parameters()), "the encoder is left as it was"


def test_the_best_of_several_starts_is_kept(encoder: nn.Module, unseen: Rows) -> None:
    wanted = embedded(encoder, unseen[0][:3])

    def apart(restarts: int) -> torch.Tensor:
        found = feature_inversion(encoder, wanted, shape=(1, 8, 8), smooth=0, steps=20, restarts=restarts).x
        return (embedded(encoder, found) - wanted).square().sum(1)

    assert bool((apart(3) <= apart(1) * 1.02).all())


@pytest.mark.parametrize(
    ("features", "knobs"),
    [
        (torch.zeros(2, 3, 4), {}),
        (torch.full((2, 64), torch.nan), {}),
        (torch.zeros(2, 64), {"steps": 0}),
        (torch.zeros(2, 64), {"rate": 0.0}),
    ],
)
def test_what_makes_no_sense_is_refused(features: torch.Tensor, knobs: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="expected"):
        feature_inversion(nn.Flatten(), features, shape=(1, 8, 8), **knobs)  # pyright: ignore[reportArgumentType]
