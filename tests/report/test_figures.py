"""Figures: valid drawings, alt texts made of the data, no state left behind, and pixels that are the tensors'."""

from __future__ import annotations

import base64
import io
import re
import sys
from xml.etree import ElementTree as XML

import matplotlib
import pytest
import torch
from sample import images, rate

from buckler.report.figures import DARK, bars, dynamics, histogram, security_curve
from buckler.report.tiles import examples, gallery

SVG = "{http://www.w3.org/2000/svg}"
CURVE = ([0.0, 0.1], [rate(349), rate(47)])


def drawn(svg: str) -> XML.Element:
    root = XML.fromstring(svg)
    assert root.tag == f"{SVG}svg"
    for element in root.iter():
        for name, value in element.attrib.items():
            assert not name.rpartition("}")[2].startswith("on")
            if name.rpartition("}")[2] in ("href", "src"):
                assert value.startswith(("#", "data:image/png;base64,"))
    assert "DejaVu" not in svg
    return root


def texts(root: XML.Element) -> list[str]:
    return ["".join(element.itertext()).strip() for element in root.iter(f"{SVG}text")]


def test_a_security_curve_says_its_numbers() -> None:
    figure = security_curve({"pgd": CURVE, "after": CURVE}, certified=CURVE, mark=0.1, axis="radius (linf)")
    root = drawn(figure.svg)
    assert {"pgd", "after", "certified (proven)", "radius (linf)"} <= set(texts(root))
    for said in ("pgd: 96.9% at 0, 13.1% at 0.1.", "certified: 96.9% at 0", "about radius 0.1"):
        assert said in figure.alt
    assert "certified" not in security_curve({"pgd": CURVE}).alt


def test_bars_say_their_numbers() -> None:
    figure = bars({"pgd": rate(61), "square": rate(118)})
    assert {"pgd", "square"} <= set(texts(drawn(figure.svg)))
    assert "pgd 16.9% (13.2 to 21.2, n = 360)" in figure.alt


def test_histograms_count_what_they_leave_out() -> None:
    values = torch.cat([torch.linspace(0, 1, 101), torch.tensor([float("inf"), float("nan")])])
    figure = histogram({"margin": values, "none": torch.full((3,), float("nan")), "same": torch.full((5,), 2.0)})
    drawn(figure.svg)
    assert "margin: median 0.5, middle half 0.25 to 0.75, 101 rows, 2 not finite." in figure.alt
    assert "none: no finite reading." in figure.alt
    drawn(histogram({}).svg)


def test_wide_readings_are_logarithmic() -> None:
    wide = histogram({"norm": torch.logspace(-4, 2, 200)})
    assert {"0.01", "1"} <= set(texts(drawn(wide.svg)))


def test_hostile_labels_are_texts() -> None:
    nasty = "_<script>$\\frac{\x00\u4e2d'\">;"
    for figure in (
        security_curve({nasty: CURVE, "b": CURVE}, axis=nasty),
        bars({nasty: rate(3), "b": rate(4)}, axis=nasty),
        histogram({nasty: torch.rand(9)}),
        examples(*images(2), [0, 1], [1, 0], names=[nasty, "b"]),
        gallery(images(2)[0], [nasty, "b"], caption="a row", alt="two images"),
        dynamics({nasty: torch.rand(9, 4), "b": torch.rand(3, 4)}, axis=nasty),
    ):
        assert any("_<script>$" in text for text in texts(drawn(figure.svg)))


def test_drawing_is_deterministic_and_leaves_no_state() -> None:
    before = dict(matplotlib.rcParams)
    first = security_curve({"pgd": CURVE}).svg
    assert first == security_curve({"pgd": CURVE}).svg
    assert dict(matplotlib.rcParams) == before
    assert "matplotlib.pyplot" not in sys.modules or not sys.modules["matplotlib.pyplot"].get_fignums()


def luminance(color: str) -> float:
    parts = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [p / 12.92 if p <= 0.03928 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(a: str, b: str) -> float:
    low, high = sorted((luminance(a), luminance(b)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("light", [color for color in DARK if color != "#dde3e8"])
def test_colors_stand_out_in_light_and_dark(light: str) -> None:
    assert contrast(light, "#ffffff") >= 4
    assert contrast(DARK[light], "#12181e") >= 4.5


def test_tiles_are_the_tensors() -> None:
    image = pytest.importorskip("PIL.Image")
    clean, moved = torch.rand(3, 3, 5, 7), torch.rand(3, 3, 5, 7)
    figure = examples(
        clean, moved, torch.tensor([0, 1, 2]), torch.tensor([0, 2, 1]), names=["cat", "dog", "owl"], many=2
    )
    tiles = re.findall(r'href="data:image/png;base64,([^"]+)"', figure.svg)
    assert len(tiles) == 6
    for row, tensor in enumerate([*clean[:2], *moved[:2]]):
        with image.open(io.BytesIO(base64.b64decode(tiles[row]))) as picture:
            assert picture.size == (7, 5)
            pixels = torch.tensor(list(picture.convert("RGB").tobytes())).view(5, 7, 3).permute(2, 0, 1)
        assert ((pixels / 255 - tensor).abs() <= 0.5 / 255 + 1e-6).all()
    assert figure.svg.count("pixelated") == 6
    assert figure.alt.endswith("cat answered as cat; dog answered as owl.")
    drawn(figure.svg)


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_examples_of_any_channels_and_size(channels: int) -> None:
    clean = torch.rand(1, channels, 300, 200)
    figure = examples(clean, clean, [0], [0])
    drawn(figure.svg)
    assert len(figure.svg) < 150_000
    drawn(examples(clean, torch.full_like(clean, float("nan")), [0], [0]).svg)


def test_examples_refuse_what_is_no_image() -> None:
    for x in (torch.rand(2, 5), torch.rand(0, 1, 4, 4)):
        with pytest.raises(ValueError, match="expected images"):
            examples(x, x, [0, 0], [0, 0])


def test_dynamics_say_how_groups_began_and_ended() -> None:
    bad, good = torch.tensor([[2.0, 0.1], [2.2, 0.3]]), torch.full((5, 2), 1.0)
    figure = dynamics({"suspected": bad, "the others": good, "none": torch.zeros(0, 2)})
    assert "suspected, 2 rows: median from 2.1 to 0.2" in figure.alt
    assert {"suspected (2)", "the others (5)"} <= set(texts(drawn(figure.svg)))
    assert "Nothing was recorded" in dynamics({"a": torch.full((2, 2), float("nan"))}).alt


def test_a_gallery_wants_a_caption_for_every_image() -> None:
    with pytest.raises(ValueError, match="a caption each"):
        gallery(torch.rand(2, 1, 4, 4), ["one"], caption="c", alt="a")
