"""Strips of points: how sure a claim is of every suspect, group by group, beside what it takes to claim one. SVG."""

from __future__ import annotations

import math
from collections.abc import Mapping
from html import escape

from buckler.findings import Figure
from buckler.report.figures import FONT, GRID, INK, SERIES, SOFT, shown, style_sheet

ROW, LEFT, WIDE, RIGHT, TOP = 24, 170, 300, 20, 8


def strips(groups: Mapping[str, list[float]], *, level: float, name: str = "claims") -> Figure:
    """One line of points for each group of p-values in (0, 1], by minus their logarithm; `level` is what claims one.

    Points beyond ten powers of ten stand at the edge.
    """
    most = min(10.0, max([_powers(level) + 1, *(_powers(p) for some in groups.values() for p in some)]))
    height = TOP + ROW * len(groups) + 34

    def at(p: float) -> float:
        return LEFT + WIDE * min(_powers(p), most) / most

    floor, parts = TOP + ROW * len(groups), list[str]()
    for power in range(0, int(most) + 1, 1 if most < 6 else 2):
        x = LEFT + WIDE * power / most
        parts.append(f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{TOP}" y2="{floor}" style="stroke: {GRID}"/>')
        parts.append(_text(x, floor + 14, "1" if power == 0 else f"1e-{power}", SOFT, "middle"))
    parts.append(
        f'<line x1="{at(level):.1f}" x2="{at(level):.1f}" y1="{TOP}" y2="{floor}" '
        f'style="stroke: {SERIES[1]}" stroke-width="1.4" stroke-dasharray="4 3"/>'
    )
    for index, (group, values) in enumerate(groups.items()):
        y = TOP + ROW * (index + 0.5)
        parts.append(_text(LEFT - 10, y + 4, shown(group, 28), INK, "end"))
        parts += [
            f'<circle cx="{at(p):.1f}" cy="{y:.1f}" r="4.2" fill-opacity="0.65" style="fill: {SERIES[0]}"/>'
            for p in values
        ]
    parts.append(_text(LEFT + WIDE / 2, floor + 30, "p-value, the smaller the surer", SOFT, "middle"))
    svg = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {LEFT + WIDE + RIGHT} {height}" '
        f'width="{LEFT + WIDE + RIGHT}" height="{height}">{style_sheet()}{"".join(parts)}</svg>'
    )
    said = "; ".join(f"{group} {', '.join(f'{p:.2g}' for p in values)}" for group, values in groups.items())
    return Figure(
        name,
        f"The p-value of every suspect; those right of the dashed line, at {100 * level:g}%, are claimed.",
        f"Points of p-values by group: {said}.",
        svg=svg,
    )


def _powers(p: float) -> float:
    return -math.log10(max(p, 1e-300))


def _text(x: float, y: float, words: str, color: str, anchor: str) -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" '
        f'style="font: 11px {escape(FONT)}; fill: {color}">{escape(words, quote=False)}</text>'
    )
