"""What is generated is up to date, and what is written by hand names only what exists."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest

from buckler.catalog import cards

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def test_the_page_of_methods_is_up_to_date() -> None:
    page = runpy.run_path(str(ROOT / "docs" / "generate.py"))
    assert page["PAGE"].read_text("utf8") == page["text"](), "run `make docs`"


def test_the_numbers_of_the_readme_are_those_of_the_benchmark() -> None:
    page = runpy.run_path(str(ROOT / "docs" / "generate.py"))
    assert page["README"].read_text("utf8") == page["readme"](), "run `make docs`"


def test_the_numbers_of_dlp_are_those_of_the_benchmark() -> None:
    page = runpy.run_path(str(ROOT / "docs" / "generate.py"))
    assert page["DLP"].read_text("utf8") == page["dlp"](), "run `make docs`"


def test_the_numbers_of_the_ten_problems_are_those_of_the_benchmark() -> None:
    page = runpy.run_path(str(ROOT / "docs" / "generate.py"))
    assert page["TEN"].read_text("utf8") == page["ten"](), "run `make docs`"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_what_a_page_links_to_is_there(page: Path) -> None:
    targets = re.findall(r"\]\((?!https?://)([^)#]+)[^)]*\)", page.read_text("utf8"))
    assert [target for target in targets if not (page.parent / target).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_method_that_a_page_names_exists(page: Path) -> None:
    known = {card.path for card in cards()} | {f"{card.area}/evaluate" for card in cards()}
    areas = "|".join({card.area for card in cards()})
    text = page.read_text("utf8").partition("## Planned areas")[0]
    named = re.findall(rf"`(?:buckler \w+ )?((?:{areas})/[a-z_]+)\b(?!\.py)", text)
    assert [path for path in named if path not in known and not path.endswith("foo")] == []
