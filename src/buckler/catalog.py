"""The file tree is the registry: paths, cards and functions, with nothing imported until it is used.

A method file is `<area>/<method>.py`, not underscored, whose function of the file's name has a return annotation out of
`kinds.KINDS`. Cards are read with `ast`. Other packages add methods through entry points in the group
`buckler.methods`; they are listed from metadata and imported only by `find`.
"""

from __future__ import annotations

import ast
import difflib
import re
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent
GROUP = "buckler.methods"


class UnknownMethod(ValueError):
    """No method has this path; the message names the closest ones."""


@dataclass(frozen=True)
class Knob:
    name: str
    type: str
    """The annotation as it is written."""
    default: str | None
    """The default as it is written; None where a value must be given."""

    @property
    def flag(self) -> str:
        return f"--{self.name.replace('_', '-')}"


@dataclass(frozen=True)
class Card:
    """What a method says about itself, read from its source."""

    path: str
    kind: str
    title: str
    reference: str
    """The address of the paper."""
    sees: str
    """What its first parameter holds: the model, or scores or labels only."""
    knobs: tuple[Knob, ...]
    tags: tuple[str, ...]
    text: str
    """The module's docstring without its title and tags."""
    summary: str
    """The function's docstring."""
    file: Path

    @property
    def area(self) -> str:
        return self.path.partition("/")[0]


def cards(area: str | None = None) -> list[Card]:
    """The cards of all methods in the package, or of one area, by path; nothing is imported."""
    kinds = _kinds()
    known = [card for file in _files() if (card := _card(file, kinds)) is not None]
    if area is not None and area not in (areas := sorted({card.area for card in known})):
        raise UnknownMethod(f"expected an area out of {', '.join(areas)}, got {area!r}")
    return [card for card in known if area in (None, card.area)]


def card(path: str) -> Card:
    """The card of one method."""
    file = ROOT / f"{path}.py"
    found = _card(file, _kinds()) if file in set(_files()) else None
    if found is None:
        raise _unknown(path)
    return found


def plugins() -> list[tuple[str, str]]:
    """The methods of other packages as their metadata names them, `(path, module:function)`; nothing is imported."""
    return [(entry.name, entry.value) for entry in _entries()]


def find(path: str) -> Callable[..., Any]:
    """The function at `path`, `evasion/pgd` or an entry point's name; imports that one module and no other method."""
    for entry in _entries():
        if entry.name == path:
            return entry.load()
    card(path)
    return vars(import_module(f"{__package__}.{path.replace('/', '.')}"))[path.rpartition("/")[2]]


def _files() -> list[Path]:
    """Every file that may hold a method: one level down, not underscored."""
    return sorted(file for file in ROOT.glob("*/*.py") if not file.name.startswith("_"))


def _entries() -> list[EntryPoint]:
    return sorted(entry_points(group=GROUP), key=lambda entry: entry.name)


def _unknown(path: str) -> UnknownMethod:
    known = [card.path for card in cards()] + [name for name, _ in plugins()]
    near = difflib.get_close_matches(path, known, 3, 0.5)
    if not near:
        ends = {name.rpartition("/")[2]: name for name in known}
        near = [ends[end] for end in difflib.get_close_matches(path.rpartition("/")[2], list(ends), 3, 0.5)]
    hint = f"did you mean {' or '.join(near)}?" if near else "`buckler list` shows all"
    return UnknownMethod(f"expected the path of a method, got {path!r}: {hint}")


def _kinds() -> dict[str, str]:
    """`kinds.KINDS`, read without importing `kinds`, which imports torch."""
    for node in ast.parse((ROOT / "kinds.py").read_text("utf8")).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "KINDS":
            return ast.literal_eval(node.value)
    raise LookupError("kinds.py has no KINDS")


def _card(file: Path, kinds: dict[str, str]) -> Card | None:
    source = file.read_text("utf8")
    if f"def {file.stem}(" not in source:
        return None
    tree = _upper(source, file.stem)
    function = next((n for n in tree.body if isinstance(n, ast.FunctionDef) and n.name == file.stem), None)
    kind = kinds.get(_written(function.returns).rpartition(".")[2]) if function is not None else None
    if function is None or kind is None:
        return None
    title, _, text = (ast.get_docstring(tree) or "").partition("\n")
    text, _, tags = text.partition("\nTags:")
    address = re.search(r"https?://[^\s)>\]]+", text)
    first = [*function.args.posonlyargs, *function.args.args][:1]
    return Card(
        path=f"{file.parent.name}/{file.stem}",
        kind=kind,
        title=title.rstrip("."),
        reference=address.group().rstrip(".,;:") if address else "",
        sees=_sees(_written(first[0].annotation) if first else ""),
        knobs=tuple(_knobs(function)),
        tags=tuple(tag.strip() for tag in tags.strip().rstrip(".").split(",") if tag.strip()),
        text=text.strip(),
        summary=ast.get_docstring(function) or "",
        file=file,
    )


def _upper(source: str, name: str) -> ast.Module:
    """A file down to the end of its function's docstring: all that a card says, in an eighth of the time."""
    opened = source.find('"""', source.find(f"\ndef {name}("))
    closed = source.find('"""', opened + 3)
    with suppress(SyntaxError):
        return ast.parse(source[: closed + 3] if 0 <= opened < closed else source)
    return ast.parse(source)


def _knobs(function: ast.FunctionDef) -> Iterator[Knob]:
    for argument, default in zip(function.args.kwonlyargs, function.args.kw_defaults, strict=True):
        yield Knob(argument.arg, _written(argument.annotation), None if default is None else ast.unparse(default))


def _sees(annotation: str) -> str:
    held = annotation.rpartition(".")[2]
    return {"Module": "model", "Rows": "data", "Oracle": "scores"}.get(held, f"{held.removesuffix('Oracle').lower()}s")


def _written(annotation: ast.expr | None) -> str:
    return "" if annotation is None else ast.unparse(annotation)
