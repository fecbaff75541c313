"""The pictures of a report, as text that a browser draws: small, sharp, and legible in light and dark.

Charts are drawn by matplotlib through its object interface; image grids are written as SVG around one small PNG per
tile. Backgrounds are transparent, and a style sheet in each picture swaps the few colours used when the reader's
screen is dark. The palette keeps apart for colour-blind readers, and lines differ in marker and dash as well. The alt
text of each picture is made of its data.
"""

from __future__ import annotations

import base64
import io
import math
import re
import struct
import warnings
import zlib
from collections.abc import Mapping, Sequence
from xml.sax.saxutils import escape

import matplotlib
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas
from matplotlib.ticker import FuncFormatter, NullFormatter, PercentFormatter
from torch import Tensor
from torch.nn import functional as F

from buckler.findings import Figure
from buckler.report._view import interval, is_share, number
from buckler.stats import Estimate

Curve = tuple[Sequence[float], Sequence[Estimate]]

INK, SOFT, GRID = "#24313d", "#5a6875", "#dde3e8"
SERIES = ("#2f6ca3", "#b8621b", "#1f7f78", "#75589c", "#8a5a44", "#6b7580")
DARK = {
    INK: "#e2e8ee",
    SOFT: "#a3b0bc",
    GRID: "#2d3843",
    SERIES[0]: "#6fb0e6",
    SERIES[1]: "#e79a56",
    SERIES[2]: "#5bbdb3",
    SERIES[3]: "#b59ddb",
    SERIES[4]: "#c79a83",
    SERIES[5]: "#a3adb7",
}
MARKERS = ("o", "s", "^", "D", "v", "P")
DASHES = ("-", "--", "-.", ":")
FONT = "-apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, 'Liberation Sans', system-ui, sans-serif"
WIDTH = 5.2
TILE, GAP, LARGEST = 60, 6, 112
_QUANTILES = (0.02, 0.25, 0.5, 0.75, 0.98)


def security_curve(
    curves: Mapping[str, Curve],
    *,
    certified: Curve | None = None,
    proven_of: str = "",
    mark: float | None = None,
    axis: str = "radius",
    name: str = "security-curve",
) -> Figure:
    """Robust accuracy against radius with interval bands, and the certified accuracy where there is one.

    `curves` maps a label (an attack, or before and after a defence) to its radii and their estimates; `mark` is the
    radius that the finding is about; `proven_of` names the model that `certified` is about where that is another one,
    such as a smoothed copy, which an attack on this model does not contradict. Returns SVG.
    """
    canvas, axes = _canvas(WIDTH, 3.1)
    labels: list[str] = []
    for index, (label, curve) in enumerate(curves.items()):
        look = SERIES[index % len(SERIES)], MARKERS[index % len(MARKERS)], DASHES[index % len(DASHES)]
        _line(axes, curve, look)
        labels.append(label)
    if certified is not None:
        _line(axes, certified, (SOFT, "", "-"), steps=True)
        labels.append(f"certified, {proven_of}" if proven_of else "certified (proven)")
    if mark is not None:
        axes.axvline(mark, color=SOFT, linewidth=0.9, linestyle=(0, (2, 3)), zorder=1)
        _note(axes, f"{mark:.3g}", (mark, 1), (3, -2), ("data", "axes fraction"), color=SOFT, va="top")
    axes.set_ylim(-0.02, 1.03)
    axes.set_xlim(left=0)
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axes.set_xlabel(_label(axis), parse_math=False)
    axes.set_ylabel("rows answered correctly")
    _legend(axes, labels)
    said = [_curve_in_words(label, curve) for label, curve in curves.items()]
    said += [_curve_in_words("certified", certified)] if certified is not None else []
    at = f" The finding is about radius {mark:.3g}." if mark is not None else ""
    grey = "; the grey step is what is proven, and no attack can go below it."
    if proven_of:
        grey = f"; the grey step is what is proven of {proven_of}, another model than the one attacked here."
    return Figure(
        name,
        "Accuracy against the adversary's radius. Bands are the intervals of the estimates"
        + (grey if certified is not None else "."),
        f"Line chart of accuracy against {axis}. {' '.join(said)}{at}",
        svg=_svg(canvas),
    )


def bars(estimates: Mapping[str, Estimate], *, axis: str = "rows answered correctly", name: str = "bars") -> Figure:
    """One bar for each estimate with its interval as a whisker: per attack, or before and after a defence. SVG."""
    canvas, axes = _canvas(WIDTH, 0.75 + 0.36 * max(len(estimates), 1), grid="x")
    shares = all(is_share(estimate) for estimate in estimates.values())
    for row, estimate in enumerate(estimates.values()):
        value, low, high = (_finite(v) for v in (estimate.value, estimate.low, estimate.high))
        axes.barh(row, value, 0.52, color=SERIES[0], alpha=0.35, linewidth=0)
        axes.plot([low, high], [row, row], color=SERIES[0], linewidth=1.6, solid_capstyle="butt")
        axes.plot([value], [row], "o", color=SERIES[0], markersize=4.5)
        words = f"{number(estimate)}  ({interval(estimate)})"
        _note(axes, words, (1, row), (8, 0), ("axes fraction", "data"), color=INK, va="center")
    axes.set_yticks(range(len(estimates)), [_label(label) for label in estimates], parse_math=False, color=INK)
    axes.invert_yaxis()
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    if shares:
        axes.set_xlim(0, 1)
        axes.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axes.set_xlabel(_label(axis), parse_math=False)
    said = "; ".join(f"{label} {number(e)} ({interval(e)}, n = {e.n})" for label, e in estimates.items())
    return Figure(
        name,
        f"{axis[:1].upper()}{axis[1:]}, with intervals.",
        f"Bar chart of {axis}: {said or 'no estimates'}.",
        svg=_svg(canvas),
    )


def histogram(readings: Mapping[str, Tensor], *, name: str = "readings") -> Figure:
    """How each reading of a mechanism probe is spread over the rows: one panel per reading `(B,)`, median marked. SVG.

    A panel is logarithmic when most of its readings, all positive, span more than two decades. Readings that are not
    finite are left out and counted in the alt text.
    """
    columns = min(2, max(len(readings), 1))
    lines = math.ceil(len(readings) / columns) or 1
    canvas = Canvas(figsize=(WIDTH, 1.7 * lines + 0.1), layout="constrained")
    said: list[str] = []
    for index, (label, values) in enumerate(readings.items()):
        axes = _style(canvas.add_subplot(lines, columns, index + 1), "y")
        axes.set_title(_label(label), fontsize=9, color=INK, loc="left", parse_math=False)
        flat = values.detach().double().flatten().cpu()
        kept = flat[flat.isfinite()]
        if len(kept) == 0:
            axes.set_axis_off()
            said.append(f"{label}: no finite reading.")
            continue
        few, low, middle, high, most = kept.quantile(torch.tensor(_QUANTILES, dtype=torch.float64)).tolist()
        smallest, largest = float(kept.min()), float(kept.max())
        wide = smallest > 0 and most > 100 * few
        many = max(8, min(30, round(len(kept) ** 0.5 * 2)))
        if wide:
            edges = torch.logspace(math.log10(smallest), math.log10(largest), many + 1, dtype=torch.float64)
            axes.set_xscale("log")
            axes.xaxis.set_major_formatter(FuncFormatter(_plain_tick))
            axes.xaxis.set_minor_formatter(NullFormatter())
        else:
            pad = 0.0 if largest > smallest else max(abs(smallest), 1.0) * 0.05
            edges = torch.linspace(smallest - pad, largest + pad, many + 1, dtype=torch.float64)
        counts = torch.bucketize(kept, edges[1:-1], right=True).bincount(minlength=many)
        axes.stairs(counts.tolist(), edges.tolist(), fill=True, color=SERIES[0], alpha=0.6, linewidth=0)
        axes.axvline(middle, color=INK, linewidth=1)
        gone = len(flat) - len(kept)
        said.append(
            f"{label}: median {middle:.3g}, middle half {low:.3g} to {high:.3g}, {len(kept)} rows"
            + (f", {gone} not finite." if gone else ".")
        )
        axes.set_ylabel("rows" if index % columns == 0 else "")
    return Figure(
        name,
        "How the readings are spread over the test rows; the line is the median.",
        f"Histograms. {' '.join(said)}",
        svg=_svg(canvas),
    )


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
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}">',
        _style_sheet(),
        f'<g style="font: 12px {FONT}; fill: {INK}">',
    ]
    for line, (head, tiles) in enumerate(zip(heads, grid, strict=True)):
        y = top + line * (TILE + GAP)
        parts.append(f'<text x="0" y="{y + TILE / 2 + 4:g}" style="fill: {SOFT}">{head}</text>')
        for column in range(count):
            x = margin + column * (TILE + GAP)
            data = base64.b64encode(_png(_small(tiles[column]))).decode()
            parts.append(
                f'<image x="{x}" y="{y}" width="{TILE}" height="{TILE}" href="data:image/png;base64,{data}" '
                'style="image-rendering: pixelated"/>'
                f'<rect x="{x}" y="{y}" width="{TILE}" height="{TILE}" style="fill: none; stroke: {GRID}"/>'
            )
    for column, (label, answer) in enumerate(words):
        x = margin + column * (TILE + GAP) + TILE / 2
        parts.append(f'<text x="{x:g}" y="16" text-anchor="middle">{escape(_label(label, 14))}</text>')
        mark = SERIES[1] if answer != label else INK
        parts.append(
            f'<text x="{x:g}" y="{height - 8}" text-anchor="middle" style="fill: {mark}; font-weight: 600">'
            f"{escape(_label(answer, 14))}</text>"
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


def _line(axes: Axes, curve: Curve, look: tuple[str, str, str], *, steps: bool = False) -> None:
    """`look` is colour, marker and dash; `steps` holds each value back to the radius before, as a proof does."""
    (radii, estimates), (color, marker, dash) = curve, look
    step, drawstyle = ("pre", "steps-pre") if steps else (None, "default")
    lows, highs = [e.low for e in estimates], [e.high for e in estimates]
    axes.fill_between(radii, lows, highs, color=color, alpha=0.16, linewidth=0, step=step)
    axes.plot(
        radii,
        [e.value for e in estimates],
        color=color,
        linestyle=dash,
        marker=marker,
        markersize=4,
        linewidth=1.7,
        drawstyle=drawstyle,
        clip_on=False,
    )


def _note(
    axes: Axes,
    text: str,
    place: tuple[float, float],
    away: tuple[float, float],
    measured_in: tuple[str, str],
    *,
    color: str,
    va: str,
) -> None:
    axes.annotate(text, place, away, measured_in, "offset points", color=color, fontsize=8.5, va=va)


def _legend(axes: Axes, labels: Sequence[str]) -> None:
    """Real labels are set as plain text afterwards: matplotlib would read `$` as mathematics and hide a leading `_`."""
    handles = [line for line in axes.get_lines() if line.get_linewidth() > 1]
    legend = axes.legend(
        handles,
        [str(index) for index in range(len(labels))],
        frameon=False,
        fontsize=8.5,
        labelcolor=INK,
        loc="lower left",
        bbox_to_anchor=(-0.01, 1.0),
        ncols=3,
        borderaxespad=0.2,
        handlelength=2.4,
    )
    for text, label in zip(legend.get_texts(), labels, strict=True):
        text.set_parse_math(False)
        text.set_text(_label(label, 28))


def _canvas(width: float, height: float, grid: str = "y") -> tuple[Canvas, Axes]:
    canvas = Canvas(figsize=(width, height), layout="constrained")
    return canvas, _style(canvas.add_subplot(), grid)


def _style(axes: Axes, grid: str) -> Axes:
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(GRID)
    axes.tick_params(which="both", colors=SOFT, labelsize=8.5, length=3)
    axes.xaxis.label.set(color=SOFT, fontsize=9)
    axes.yaxis.label.set(color=SOFT, fontsize=9)
    axes.grid(True, axis="y" if grid == "y" else "x", color=GRID, linewidth=0.7)
    axes.set_axisbelow(True)
    return axes


def _svg(canvas: Canvas) -> str:
    """The drawing as SVG with real text; two settings are lent to matplotlib while it writes."""
    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "buckler"}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from", category=UserWarning)
        canvas.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    text = re.sub(r"<\?xml.*?\?>|<!DOCTYPE.*?>|<metadata>.*?</metadata>", "", buffer.getvalue(), flags=re.DOTALL)
    text = re.sub(r"(font(?:-family)?: [^;\"<>]*?)'DejaVu Sans'[^;\"<>]*", lambda found: found[1] + FONT, text)
    return re.sub(r"<svg [^>]*>", lambda found: found[0] + _style_sheet(), text.strip(), count=1)


def _style_sheet() -> str:
    swaps = "".join(
        f'[style*="fill: {light}"]{{fill:{dark}!important}}[style*="stroke: {light}"]{{stroke:{dark}!important}}'
        for light, dark in DARK.items()
    )
    return f"<style>@media screen and (prefers-color-scheme:dark){{{swaps}}}</style>"


def _plain_tick(value: float, _place: int) -> str:
    return f"{value:g}"


def _curve_in_words(label: str, curve: Curve) -> str:
    points = ", ".join(f"{number(e)} at {radius:.3g}" for radius, e in zip(*curve, strict=True))
    return f"{label}: {points}."


def _label(text: str, longest: int = 40) -> str:
    """Text that is safe in a drawing: no control characters, and not longer than there is room for."""
    plain = "".join(c if c.isprintable() else " " for c in text)
    return plain if len(plain) <= longest else f"{plain[: longest - 1]}\u2026"


def _class(index: int, names: Sequence[str] | None) -> str:
    return names[index] if names is not None and 0 <= index < len(names) else str(index)


def _finite(value: float) -> float:
    return value if math.isfinite(value) else 0.0


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
