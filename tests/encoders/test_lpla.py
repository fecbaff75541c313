"""LpLA where the lengths of features are drawn from known distributions."""

from __future__ import annotations

import math
from functools import cache

import pytest
import torch
from remembering_worlds import auc, images
from scipy.stats import norm
from torch import Tensor, nn
from torch.nn import functional as F

from buckler.dice import Dice, fingerprint_rows
from buckler.encoders._shadowed import Shadows
from buckler.encoders.lpla import lpla
from buckler.target import Oracle

SPREAD = 0.2


class Longer(nn.Module):
    """Directions, longer by `gain` for members, and by what is the same in all encoders or is each encoder's own."""

    def __init__(self, members: Tensor, gain: float, *, own: int = 0) -> None:
        super().__init__()
        self.members, self.gain, self.own = fingerprint_rows(members), gain, own

    def forward(self, x: Tensor) -> Tensor:
        length = SPREAD * Dice(x, self.own).normal() + self.gain * torch.isin(fingerprint_rows(x), self.members)
        return F.normalize(x.flatten(1), dim=1) * length.exp()[:, None]


@cache
def world(many: int = 1500) -> tuple[Tensor, Tensor]:
    return torch.cat([images(many, 1), images(many, 2)]), torch.arange(2 * many) < many


def scored(gain: float, *, own: bool, calibrated: bool) -> Tensor:
    x, member = world()
    parts = images(500, 11), images(500, 12)
    made = tuple(Longer(part, gain, own=place + 1 if own else 0) for place, part in enumerate(parts))
    target = Oracle(Longer(x[member], gain), "features")
    scores = lpla(target, x, shadows=lambda _: Shadows(made, parts, images(500, 13)), calibrated=calibrated)
    return scores


@pytest.mark.parametrize("gain", [0.2, -0.2])
def test_as_many_are_told_as_two_normal_distributions_allow(gain: float) -> None:
    """Whether members have longer features or shorter ones."""
    expected = norm.cdf(abs(gain) / SPREAD / math.sqrt(2))
    assert auc(scored(gain, own=True, calibrated=False), world()[1]).value == pytest.approx(expected, abs=0.03)


def test_what_all_encoders_share_does_not_hide_members() -> None:
    assert auc(scored(0.1, own=False, calibrated=True), world()[1]).value > 0.999


def test_nobody_is_told_by_an_encoder_that_gives_nobody_away() -> None:
    told = auc(scored(0.0, own=True, calibrated=True), world()[1])
    assert told.low < 0.5 < told.high


def test_an_order_that_is_none_is_said() -> None:
    x, _ = world()
    with pytest.raises(ValueError, match="order above 0, got 0"):
        lpla(Oracle(Longer(x, 0.0), "features"), x, shadows=lambda _: Shadows((), (), x), p=0.0)
