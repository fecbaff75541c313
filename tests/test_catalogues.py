"""Every tag that a method claims is in its catalogue, and the catalogues are what they say."""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path

import pytest

import buckler
from buckler.threat import catalogue, pinned, tag_name

ROOT = Path(buckler.__file__).parent
CATALOGUES = sorted(path.stem for path in (ROOT / "catalogues").glob("*.json"))
TAGGED = {
    path.relative_to(ROOT).as_posix(): docstring
    for path in sorted(ROOT.rglob("*.py"))
    if (docstring := ast.get_docstring(ast.parse(path.read_text("utf8")))) and re.search(r"^Tags:", docstring, re.M)
}


@pytest.mark.parametrize("path", TAGGED)
def test_every_tag_of_a_method_is_in_its_catalogue(path: str) -> None:
    lines = re.findall(r"^Tags: (.+?)\.?$", TAGGED[path], re.M)
    assert len(lines) == 1
    assert TAGGED[path].rstrip().endswith(lines[0] + "."), "the Tags line is the last of the docstring"
    tags = pinned(TAGGED[path])
    assert len(tags) == len(set(tags)) == lines[0].count(",") + 1


def test_methods_are_found() -> None:
    assert "evasion/pgd.py" in TAGGED


@pytest.mark.parametrize("scheme", CATALOGUES)
def test_a_catalogue_says_where_it_is_from(scheme: str) -> None:
    content = json.loads((ROOT / "catalogues" / f"{scheme}.json").read_text("utf8"))
    assert list(content) == ["version", "licence", "source", "entries"]
    assert all(isinstance(content[key], str) and content[key] for key in ("version", "licence", "source"))
    assert all(name and name == " ".join(name.split()) for name in content["entries"].values())
    assert "@" not in content["entries"]


def test_the_catalogues_are_complete() -> None:
    atlas = [identity for identity in catalogue("atlas") if identity != "@"]
    kinds = [re.sub(r"[\d.]+$", "", identity.removeprefix("AML.")) for identity in atlas]
    assert {kind: kinds.count(kind) for kind in set(kinds)} == {"TA": 16, "T": 170, "M": 35}
    assert [identity for identity in catalogue("owasp-ml") if identity != "@"] == [f"ML{i:02d}" for i in range(1, 11)]
    assert sum(len(identity) == len("NISTAML.022") for identity in catalogue("nist-ai-100-2")) == 25


@pytest.mark.parametrize(
    ("tag", "name"),
    [
        ("atlas:AML.T0043.000@5.6.0", "Craft Adversarial Data: White-Box Optimization"),
        ("atlas:AML.T0015@5.6.0", "Evade AI Model"),
        ("atlas:AML.M0003@5.6.0", "Model Hardening"),
        ("nist-ai-100-2:NISTAML.025@e2025", "Black-box Evasion"),
        ("owasp-ml:ML05@2023", "Model Theft"),
        ("cwe:502@4.17", "Deserialization of Untrusted Data"),
    ],
)
def test_names(tag: str, name: str) -> None:
    assert tag_name(tag) == name


@pytest.mark.parametrize(
    "tag", ["atlas:AML.T9999@5.6.0", "atlas:AML.T0015@2026.09", "cve:1@1", "cwe:79@4.17", "nonsense"]
)
def test_what_is_not_in_a_catalogue_is_refused(tag: str) -> None:
    with pytest.raises(ValueError, match="catalogue"):
        tag_name(tag)
