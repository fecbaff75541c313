"""Clouds of points."""

from __future__ import annotations

import re

import pytest
import torch

from buckler.report.clouds import PAD, SIDE, clouds


def test_points_stand_at_one_scale_and_words_are_escaped() -> None:
    groups = {"a <x>": torch.tensor([[0.0, 0.0], [4.0, 1.0]]), "b": torch.tensor([[2.0, 2.0]])}
    figure = clouds(groups, caption="What is shown.")
    svg = figure.svg or ""
    dots = re.findall(r'<circle cx="([\d.]+)" cy="([\d.]+)" r="2.6"', svg)
    places = [tuple(map(float, dot)) for dot in dots]
    assert len(places) == 3
    assert places[1][0] - places[0][0] == SIDE - 2 * PAD
    assert places[2][1] - places[0][1] == pytest.approx((SIDE - 2 * PAD) / 2, abs=0.1)
    assert places[2][0] - places[0][0] == pytest.approx((SIDE - 2 * PAD) / 2, abs=0.1)
    assert "a &lt;x&gt;" in svg
    assert "<x>" not in svg
    assert "a <x>: 2 around (2, 0.5)" in figure.alt


@pytest.mark.parametrize(
    "groups", [{}, {"a": torch.zeros(0, 2)}, {"a": torch.zeros(3)}, {"a": torch.full((2, 2), torch.nan)}]
)
def test_what_cannot_be_drawn_is_refused(groups: dict[str, torch.Tensor]) -> None:
    with pytest.raises(ValueError, match="finite points"):
        clouds(groups, caption="Nothing.")
