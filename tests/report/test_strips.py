"""Strips of p-values."""

from __future__ import annotations

import re

from buckler.report.strips import strips


def test_every_point_stands_by_its_power_of_ten_and_words_are_escaped() -> None:
    figure = strips({"own <x>": [1e-4], "others": [1.0, 0.1, 0.0]}, level=0.01)
    svg = figure.svg or ""
    places = [float(x) for x in re.findall(r'<circle cx="([\d.]+)"', svg)]
    assert len(places) == 4
    one, tenth, least = places[1], places[2], places[3]
    assert places[0] - one == 4 * (tenth - one)
    assert least - one == 10 * (tenth - one)
    assert "own &lt;x&gt;" in svg
    assert "<x>" not in svg
    assert "own <x> 0.0001; others 1, 0.1, 0" in figure.alt
