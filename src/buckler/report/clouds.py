"""Clouds of points in a plane: the features of rows of several kinds, along the two directions that show most. SVG."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape

import torch
from torch import Tensor

from buckler.findings import Figure
from buckler.report.figures import FONT, GRID, INK, SERIES, shown, style_sheet

SIDE, LINE, PAD = 300, 18, 10


def clouds(groups: Mapping[str, Tensor], *, caption: str, name: str = "features") -> Figure:
    """The points `(N, 2)` of each group in a colour of its own, at one scale; a `ValueError` for no points."""
    points = torch.cat([*groups.values()]).double() if groups else torch.zeros(0, 2)
    if points.ndim != 2 or points.shape[1] != 2 or not len(points) or not bool(points.isfinite().all()):
        raise ValueError(f"expected finite points (N, 2), got {tuple(points.shape)}")
    low, high = points.amin(0), points.amax(0)
    scale = (SIDE - 2 * PAD) / max(float((high - low).max()), 1e-12)
    start = PAD + (SIDE - 2 * PAD - (high - low) * scale) / 2
    top = LINE * len(groups) + PAD
    parts = [f'<rect x="0.5" y="{top}" width="{SIDE - 1}" height="{SIDE}" fill="none" style="stroke: {GRID}"/>']
    for index, (group, some) in enumerate(groups.items()):
        color = SERIES[index % len(SERIES)]
        parts.append(f'<circle cx="8" cy="{LINE * index + 9}" r="4" style="fill: {color}"/>')
        parts.append(
            f'<text x="18" y="{LINE * index + 13}" font-family="{escape(FONT)}" font-size="11.5" '
            f'style="fill: {INK}">{escape(shown(group, 44))}</text>'
        )
        parts += [
            f'<circle cx="{x:.1f}" cy="{top + y:.1f}" r="2.6" fill-opacity="0.55" style="fill: {color}"/>'
            for x, y in ((some.double() - low) * scale + start).tolist()
        ]
    svg = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {SIDE} {top + SIDE + 1}" width="{SIDE}" '
        f'height="{top + SIDE + 1}">{style_sheet()}{"".join(parts)}</svg>'
    )
    said = "; ".join(
        f"{group}: {len(some)} around ({some[:, 0].mean():.2g}, {some[:, 1].mean():.2g}), "
        f"{float((some - some.mean(0)).norm(dim=1).mean()):.2g} from there in the mean"
        for group, some in groups.items()
    )
    return Figure(name, caption, f"Points in a plane. {said}.", svg=svg)
