"""The file tree is the registry: what a file says is what is listed, and nothing is imported to know it."""

from __future__ import annotations

import ast
import inspect
import resource
import subprocess
import sys
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from buckler import catalog
from buckler.catalog import UnknownMethod, card, cards, find
from buckler.kinds import KINDS
from buckler.method import describe

PATHS = [found.path for found in cards()]


def quiet(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)


def test_listing_imports_neither_torch_nor_a_method() -> None:
    said = quiet(
        "import sys; from buckler.cli import main; main(['list']); main(['show', 'evasion/pgd']);"
        "print(sorted({'torch', 'numpy', 'buckler.kinds', 'buckler.evasion.pgd'} & set(sys.modules)), file=sys.stderr)"
    )
    assert said.stderr.strip() == "[]"
    assert "evasion/pgd" in said.stdout


def test_listing_takes_less_than_half_a_second() -> None:
    """In processor time, which neighbours on the machine do not stretch as they stretch the clock."""
    assert min(spent() for _ in range(3)) < 0.5


def spent() -> float:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    quiet("import sys; from buckler.cli import main; sys.exit(main(['list']))")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


@pytest.mark.parametrize("path", PATHS)
def test_a_card_says_what_the_function_says(path: str) -> None:
    found, function = card(path), find(path)
    described = describe(function)
    assert path == described.path == f"{found.area}/{function.__name__}"
    assert found.kind == described.kind
    assert found.sees == described.holds
    assert [knob.name for knob in found.knobs] == list(described.knobs)
    parameters = inspect.signature(function).parameters
    for knob in found.knobs:
        default = parameters[knob.name].default
        assert (knob.default is None) == (default is inspect.Parameter.empty)
    assert {tag.partition("@")[0] for tag in described.tags} == set(found.tags)
    assert found.title
    assert found.reference.startswith("https://")
    assert found.summary == inspect.getdoc(function)


def test_every_kind_is_read_from_kinds() -> None:
    assert catalog._kinds() == KINDS


def test_an_area_is_listed_alone() -> None:
    assert {found.area for found in cards("evasion")} == {"evasion"}
    assert [
        found for area in ("encoders", "evasion", "poisoning", "privacy", "theft") for found in cards(area)
    ] == cards()
    with pytest.raises(UnknownMethod, match="expected an area out of encoders, evasion, poisoning, privacy, theft"):
        cards("poisning")


@pytest.mark.parametrize(
    ("path", "says"),
    [
        ("evasion/pdg", "did you mean evasion/pgd"),
        ("pgd", "did you mean .*evasion/pgd"),
        ("evasion/evaluate", "expected the path of a method"),
        ("evasion/_search", "expected the path of a method"),
        ("../evasion/pgd", "expected the path of a method"),
        ("/etc/passwd", "expected the path of a method"),
        ("zzzzzz", "`buckler list` shows all"),
        ("", "`buckler list` shows all"),
    ],
)
def test_an_unknown_path_is_answered_with_the_closest(path: str, says: str) -> None:
    with pytest.raises(UnknownMethod, match=says):
        find(path)


def test_a_new_file_is_a_new_method(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "kinds.py").write_text('KINDS = {"Perturbed": "evade"}\n')
    (tmp_path / "attacks").mkdir()
    (tmp_path / "attacks" / "nudge.py").write_text(
        '"""Nudge.\n\nA. Author, 2020, https://example.org/nudge.\n\nTags: a:b, c:d.\n"""\n'
        "def nudge(oracle: ScoreOracle, x, y, *, ball: Ball, steps: int = 3) -> kinds.Perturbed:\n"
        '    """Move."""\n    raise AssertionError\n'
    )
    (tmp_path / "attacks" / "helper.py").write_text("def other() -> Perturbed: ...\n")
    (tmp_path / "attacks" / "text.py").write_text("def text() -> str: ...\n")
    monkeypatch.setattr(catalog, "ROOT", tmp_path)
    (found,) = cards()
    assert (found.path, found.kind, found.title, found.sees) == ("attacks/nudge", "evade", "Nudge", "scores")
    assert found.reference == "https://example.org/nudge"
    assert found.tags == ("a:b", "c:d")
    assert [(knob.name, knob.type, knob.default) for knob in found.knobs] == [
        ("ball", "Ball", None),
        ("steps", "int", "3"),
    ]


def test_other_packages_add_methods(monkeypatch: pytest.MonkeyPatch) -> None:
    entry = EntryPoint("acme/shake", "buckler.evasion.pgd:pgd", "buckler.methods")
    monkeypatch.setattr(catalog, "entry_points", lambda group: [entry] if group == "buckler.methods" else [])
    assert catalog.plugins() == [("acme/shake", "buckler.evasion.pgd:pgd")]
    assert find("acme/shake").__name__ == "pgd"
    with pytest.raises(UnknownMethod, match="did you mean acme/shake"):
        find("acme/shaek")


def test_a_file_is_read_as_far_as_its_card_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    known = cards()
    monkeypatch.setattr(catalog, "_upper", lambda source, name: ast.parse(source))
    assert cards() == known


@pytest.mark.parametrize("body", ["return 1", '"""Said."""', '"Said."\n\n\ndef more() -> str:\n    return """it"""'])
def test_a_function_is_found_however_it_is_documented(body: str) -> None:
    source = f'"""Title."""\n\n\ndef some(x: int, *, y: int = 2) -> int:\n    {body}\n'
    found = catalog._upper(source, "some").body[1]
    assert ast.unparse(found).partition("\n")[0] == "def some(x: int, *, y: int=2) -> int:"
