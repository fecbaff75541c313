"""The pictures of a report, as text that a browser draws: small, sharp, and legible in light and dark.

Charts are drawn by matplotlib through its object interface; grids of images are in `tiles`. Backgrounds are
transparent, and a style sheet in each picture swaps the few colours used when the reader's screen is dark. The palette
keeps apart for colour-blind readers, and lines differ in marker and dash as well. The alt text of each picture is made
of its data.
"""

from __future__ import annotations

import io
import math
import re
import warnings
from collections.abc import Mapping, Sequence

import matplotlib
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter, PercentFormatter
from torch import Tensor

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
    axes.set_xlabel(shown(axis), parse_math=False)
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


def exchange(curves: Mapping[str, Curve], *, axis: str, of: str = "", name: str = "exchange") -> Figure:
    """What is bought and what it costs, as shares, against one knob on a logarithmic axis. SVG.

    `curves` maps a label to the knob's values, above 0, and their estimates, `of` one thing where that is said.
    """
    canvas, axes = _canvas(WIDTH, 3.1)
    for index, curve in enumerate(curves.values()):
        _line(axes, curve, (SERIES[index % len(SERIES)], MARKERS[index % len(MARKERS)], DASHES[index % len(DASHES)]))
    axes.set_xscale("log")
    marked = sorted({at for values, _ in curves.values() for at in values})
    if len(marked) <= 6:
        axes.set_xticks(marked)
    axes.xaxis.set_major_formatter(FuncFormatter(_plain_tick))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_ylim(-0.02, 1.03)
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axes.set_xlabel(shown(axis), parse_math=False)
    axes.set_ylabel(shown(of), parse_math=False)
    _legend(axes, list(curves))
    said = " ".join(_curve_in_words(label, curve) for label, curve in curves.items())
    caption = f"{of or ' and '.join(curves)} against {axis}. Bands are the intervals of the estimates."
    return Figure(name, caption[:1].upper() + caption[1:], f"Line chart against {axis}. {said}", svg=_svg(canvas))


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
    axes.set_yticks(range(len(estimates)), [shown(label) for label in estimates], parse_math=False, color=INK)
    axes.invert_yaxis()
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    if shares:
        axes.set_xlim(0, 1)
        axes.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axes.set_xlabel(shown(axis), parse_math=False)
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
        axes.set_title(shown(label), fontsize=9, color=INK, loc="left", parse_math=False)
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


def dynamics(groups: Mapping[str, Tensor], *, axis: str = "loss", name: str = "dynamics") -> Figure:
    """What training saw of groups of rows, epoch by epoch: the median of each and the middle half as a band. SVG.

    `groups` maps a label to its record `(rows, epochs)`; what is not finite is left out.
    """
    canvas, axes = _canvas(WIDTH, 2.8)
    said: list[str] = []
    labels: list[str] = []
    quarters = torch.tensor([0.25, 0.5, 0.75])
    for index, (group, record) in enumerate(groups.items()):
        values = record.detach().float().cpu()
        if values.numel() == 0 or not bool(values.isfinite().any()):
            continue
        low, middle, high = values.nanquantile(quarters, dim=0)
        epochs = list(range(1, values.shape[1] + 1))
        color = SERIES[index % len(SERIES)]
        axes.fill_between(epochs, low.tolist(), high.tolist(), color=color, alpha=0.16, linewidth=0)
        axes.plot(epochs, middle.tolist(), color=color, linestyle=DASHES[index % len(DASHES)], linewidth=1.7)
        labels.append(f"{group} ({len(values)})")
        said.append(f"{group}, {len(values)} rows: median from {middle[0]:.3g} to {middle[-1]:.3g}")
    _legend(axes, labels)
    axes.set_xlabel("epoch")
    axes.set_ylabel(shown(axis), parse_math=False)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    return Figure(
        name,
        f"The {axis} of groups of training rows over the epochs: median, and the middle half as a band.",
        f"Line chart of {axis} by epoch. {'; '.join(said) or 'Nothing was recorded'}.",
        svg=_svg(canvas),
    )


def roc(curves: Mapping[str, Tensor], *, name: str = "roc") -> Figure:
    """How many bad rows are found for how many false alarms, both on logarithmic axes, beside chance. SVG.

    `curves` maps a label to its rows `(N, 2)`: scores, and 1 for a bad row, 0 for a clean one. A threshold is never
    below a clean row that it may not flag; a curve begins where it could flag half a clean row.
    """
    canvas, axes = _canvas(WIDTH, 3.4)
    said: list[str] = []
    lowest = 1.0
    for index, (label, ranked) in enumerate(curves.items()):
        score, bad = ranked[:, 0].double(), ranked[:, 1] == 1
        clean, found = score[ranked[:, 1] == 0].sort(descending=True).values, score[bad].sort().values
        if min(len(clean), len(found)) == 0:
            continue
        said_at = [x for x in (0.001, 0.01, 0.1) if x * len(clean) >= 1]
        grid = torch.logspace(math.log10(0.5 / len(clean)), 0, 120, dtype=torch.float64)
        alarms = torch.cat([grid, torch.tensor(said_at, dtype=torch.float64)]).sort().values
        flagged = (alarms * len(clean) + 1e-9).long().clamp_max(len(clean) - 1)
        hits = 1 - torch.searchsorted(found, clean[flagged], right=True).double() / len(found)
        hits[-1] = 1.0
        lowest = min(lowest, 0.5 / len(clean))
        axes.plot(
            alarms.tolist(),
            hits.clamp_min(0.5 / len(found)).tolist(),
            color=SERIES[index % len(SERIES)],
            linestyle=DASHES[index % len(DASHES)],
            linewidth=1.7,
            drawstyle="steps-post",
        )
        at = [f"{hits[int((alarms <= x).sum()) - 1]:.2%} at {x:.1%}" for x in said_at]
        said.append(f"{label}: {', '.join(at) or 'too few rows'}.")
    drawn = [label for label, ranked in curves.items() if 0 < int((ranked[:, 1] == 1).sum()) < len(ranked)]
    _legend(axes, drawn)
    axes.plot([lowest, 1], [lowest, 1], color=SOFT, linewidth=0.9, linestyle=(0, (2, 3)))
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlim(lowest, 1)
    axes.set_ylim(lowest, 1.1)
    for side in (axes.xaxis, axes.yaxis):
        side.set_major_formatter(FuncFormatter(_percent_tick))
        side.set_minor_formatter(NullFormatter())
    axes.set_xlabel("other rows flagged (false alarms)")
    axes.set_ylabel("members found")
    return Figure(
        name,
        "Members found against false alarms, both on logarithmic axes; the dotted line is chance.",
        f"Line chart of members found at shares of false alarms. {' '.join(said) or 'Nothing was measured.'}",
        svg=_svg(canvas),
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
        text.set_text(shown(label, 28))


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
    return re.sub(r"<svg [^>]*>", lambda found: found[0] + style_sheet(), text.strip(), count=1)


def style_sheet() -> str:
    swaps = "".join(
        f'[style*="fill: {light}"]{{fill:{dark}!important}}[style*="stroke: {light}"]{{stroke:{dark}!important}}'
        for light, dark in DARK.items()
    )
    return f"<style>@media screen and (prefers-color-scheme:dark){{{swaps}}}</style>"


def _percent_tick(value: float, _place: int) -> str:
    return f"{100 * value:g}%"


def _plain_tick(value: float, _place: int) -> str:
    return f"{value:g}" if value >= 1 else f"{value:.2g}"


def _curve_in_words(label: str, curve: Curve) -> str:
    points = ", ".join(f"{number(e)} at {radius:.3g}" for radius, e in zip(*curve, strict=True))
    return f"{label}: {points}."


def shown(text: str, longest: int = 40) -> str:
    """Text that is safe in a drawing: no control characters, and not longer than there is room for."""
    plain = "".join(c if c.isprintable() else " " for c in text)
    return plain if len(plain) <= longest else f"{plain[: longest - 1]}\u2026"


def _finite(value: float) -> float:
    return value if math.isfinite(value) else 0.0
