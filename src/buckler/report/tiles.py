"""Grids of images as SVG around one small PNG per tile: examples of an attack, suspicious rows, recovered triggers."""

from __future__ import annotations

import base64
import math
import struct
import zlib
from collections.abc import Sequence
from xml.sax.saxutils import escape

import torch
from torch import Tensor
from torch.nn import functional as F

from buckler.findings import Figure
from buckler.report.figures import FONT, GRID, INK, SERIES, SOFT, shown, style_sheet

TILE, GAP, LARGEST = 60, 6, 112


def examples(
    clean: Tensor,
    moved: Tensor,
    labels: Sequence[int] | Tensor,
    predictions: Sequence[int] | Tensor,
    *,
    names: Sequence[str] | None = None,
    many: int = 6,
    name: str = "examples",
) -> Figure:
    """Clean inputs, the perturbed ones, and their amplified difference, one column for each of the first `many` rows.

    `clean` and `moved` `(B, C, H, W)` in [0, 1]; one and three channels are shown as they are, other counts as their
    mean. `names` are the classes. The difference is shown around mid-grey. Returns SVG with one PNG per tile.
    """
    if clean.ndim != 4 or clean.shape != moved.shape or len(clean) == 0:
        raise ValueError(f"expected images (B, C, H, W) twice, got {tuple(clean.shape)} and {tuple(moved.shape)}")
    count = min(many, len(clean))
    before, after = _pictures(clean[:count]), _pictures(moved[:count])
    change = after - before
    largest = float(change.abs().max())
    factor = _round_down(0.5 / largest) if largest > 0 else 1.0
    grid = (before, after, 0.5 + factor * change)
    heads = ("clean", "perturbed", f"difference \u00d7{factor:g}")
    words = [
        (_class(int(label), names), _class(int(answer), names))
        for label, answer in zip(labels[:count], predictions[:count], strict=True)
    ]
    margin, top = 86, 26
    height, width = top + 3 * (TILE + GAP) + 16, margin + count * (TILE + GAP)
    parts = [_opening(width, height)]
    for line, (head, tiles) in enumerate(zip(heads, grid, strict=True)):
        y = top + line * (TILE + GAP)
        parts.append(f'<text x="0" y="{y + TILE / 2 + 4:g}" style="fill: {SOFT}">{head}</text>')
        for column in range(count):
            x = margin + column * (TILE + GAP)
            parts.append(_image(tiles[column], x, y))
    for column, (label, answer) in enumerate(words):
        x = margin + column * (TILE + GAP) + TILE / 2
        parts.append(f'<text x="{x:g}" y="16" text-anchor="middle">{escape(shown(label, 14))}</text>')
        mark = SERIES[1] if answer != label else INK
        parts.append(
            f'<text x="{x:g}" y="{height - 8}" text-anchor="middle" style="fill: {mark}; font-weight: 600">'
            f"{escape(shown(answer, 14))}</text>"
        )
    parts.append(
        f'<text x="0" y="16" style="fill: {SOFT}">label</text>'
        f'<text x="0" y="{height - 8}" style="fill: {SOFT}">answer</text></g></svg>'
    )
    said = "; ".join(f"{label} answered as {answer}" for label, answer in words)
    return Figure(
        name,
        f"Inputs before and after the attack, and what was changed, amplified {factor:g} times around grey. "
        f"The largest change of any element is {largest:.3g} of the range.",
        f"{count} inputs, each clean, perturbed, and as a difference amplified {factor:g} times: {said}.",
        svg="".join(parts),
    )


def gallery(
    images: Tensor, captions: Sequence[str], *, caption: str, alt: str, name: str = "gallery", columns: int = 12
) -> Figure:
    """Images `(B, C, H, W)` in [0, 1] in lines, each with a short caption below it. SVG with one PNG per tile."""
    if images.ndim != 4 or len(images) == 0 or len(captions) != len(images):
        raise ValueError(f"expected images (B, C, H, W) and a caption each, got {tuple(images.shape)}, {len(captions)}")
    line = TILE + 20
    width, height = min(columns, len(images)) * (TILE + GAP), math.ceil(len(images) / columns) * line
    parts = [_opening(width, height)]
    for place, (tile, text) in enumerate(zip(_pictures(images), captions, strict=True)):
        x, y = place % columns * (TILE + GAP), place // columns * line
        parts.append(_image(tile, x, y))
        parts.append(
            f'<text x="{x + TILE / 2:g}" y="{y + line - 5}" text-anchor="middle" style="fill: {SOFT}; font-size: 10px">'
            f"{escape(shown(text, 14))}</text>"
        )
    return Figure(name, caption, alt, svg="".join([*parts, "</g></svg>"]))


def _opening(width: float, height: float) -> str:
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}">'
        f'{style_sheet()}<g style="font: 12px {FONT}; fill: {INK}">'
    )


def _image(tile: Tensor, x: float, y: float) -> str:
    data = base64.b64encode(_png(_small(tile))).decode()
    return (
        f'<image x="{x}" y="{y}" width="{TILE}" height="{TILE}" href="data:image/png;base64,{data}" '
        'style="image-rendering: pixelated"/>'
        f'<rect x="{x}" y="{y}" width="{TILE}" height="{TILE}" style="fill: none; stroke: {GRID}"/>'
    )


def _class(index: int, names: Sequence[str] | None) -> str:
    return names[index] if names is not None and 0 <= index < len(names) else str(index)


def _round_down(factor: float) -> float:
    """To one leading digit, so that a reader can hold it in mind: 12.7 becomes 10, 5.6 becomes 5."""
    power = 10.0 ** math.floor(math.log10(factor))
    return max(1.0, math.floor(factor / power) * power)


def _pictures(x: Tensor) -> Tensor:
    x = x.detach().float().cpu()
    return x if x.shape[1] in (1, 3) else x.mean(1, keepdim=True)


def _small(tile: Tensor) -> Tensor:
    """A tile `(C, H, W)` no larger than a picture needs; small ones stay as they are and the browser enlarges them."""
    largest = max(tile.shape[1:])
    if largest <= LARGEST:
        return tile
    size = [max(1, round(side * LARGEST / largest)) for side in tile.shape[1:]]
    return F.interpolate(tile[None], size=size, mode="area")[0]


def _png(tile: Tensor) -> bytes:
    """A PNG of a tile `(1 or 3, H, W)` in [0, 1], eight bits per channel."""
    pixels = (tile.nan_to_num(0).clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0)
    height, width, channels = pixels.shape
    rows = b"".join(b"\0" + row.contiguous().numpy().tobytes() for row in pixels)

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 2 if channels == 3 else 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows, 9)) + chunk(b"IEND", b"")
