"""Attributes that features carry, and features that carry none."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from buckler.data import Rows
from buckler.encoders.attribute import attribute
from buckler.target import Oracle


def planted(x: Tensor) -> Tensor:
    """Features of which one, of eight, says whether an image is light; the others are noise."""
    found = torch.randn(len(x), 8, generator=torch.Generator().manual_seed(len(x)))
    found[:, 3] = x.flatten(1).mean(1)
    return found


def test_what_is_planted_is_told(learnt: Rows, unseen: Rows) -> None:
    light = [rows.flatten(1).mean(1) for rows in (learnt[0], unseen[0])]
    which = [(one > light[0].median()).long() for one in light]
    oracle = Oracle(planted, "features")
    for inner in (0, 16):
        scores = attribute(oracle, planted(unseen[0]), known=(learnt[0], which[0]), values=2, inner=inner)["attribute"]
        assert scores.shape == (600, 2)
        assert torch.allclose(scores.exp().sum(1), torch.ones(600), atol=1e-5)
        assert float((scores.argmax(1) == which[1]).float().mean()) > 0.9
    assert oracle.asked == 2 * len(learnt[0])


def test_what_is_not_there_is_not_told(learnt: Rows, unseen: Rows) -> None:
    coins = torch.randint(2, (300,), generator=torch.Generator().manual_seed(0))
    scores = attribute(Oracle(planted, "features"), planted(unseen[0]), known=(learnt[0], coins), values=2)["attribute"]
    truth = torch.randint(2, (600,), generator=torch.Generator().manual_seed(1))
    assert abs(float((scores.argmax(1) == truth).float().mean()) - 0.5) < 0.08


def test_what_makes_no_sense_is_refused(learnt: Rows) -> None:
    oracle = Oracle(planted, "features")
    with pytest.raises(ValueError, match="expected two values"):
        attribute(oracle, torch.zeros(2, 8), known=learnt, values=5)
    with pytest.raises(ValueError, match="expected features"):
        attribute(oracle, torch.zeros(2, 9), known=learnt, values=10)
