"""The rules of the house (docs/architecture.md, "Rules that a test enforces"), read from the source with `ast`.

Each rule is a function of a module's tree that yields what breaks it, and is tried on a planted offence as well: a rule
that cannot fail is no rule.
"""

from __future__ import annotations

import ast
import re
from collections import Counter
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import pytest

from buckler.catalog import card, cards

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "buckler"
AREAS = sorted({found.area for found in cards()})
FILES = sorted(SOURCE.rglob("*.py"))
LINES, FUNCTION_LINES, PARAMETERS = 400, 120, 12
WORDS = 15
"""What an area's `evaluate` may be asked: the words that plans of the whole area are written in."""
BASES = {"Module", "Dataset", "Protocol", "Enum", "Exception", "NamedTuple", "BaseModel"}
BUILT_IN = {"ValueError", "str", "Generic"}  # errors are ValueErrors where input is wrong; `str` beside Enum only
NETWORK = {"urllib.request", "http.client", "socket", "ssl", "ftplib", "smtplib", "requests", "httpx", "aiohttp"}
MAY_REACH_OUT = {"data", "endpoint"}
# layers of the core, lowest first; a module imports its own layer and those below. Areas lie above `subject`.
LAYERS = (
    {"__init__"},
    {"threat", "stats", "dice", "catalog", "pictures", "claims"},
    {"target", "data", "nets", "augment", "endpoint", "flags", "graph"},
    {"kinds", "touch", "train", "trial"},
    {"method", "combine", "contract", "findings", "embedding", "accountant", "private", "watching"},
    {"imported", "weights", "huggingface", "pretrained"},
    {"subject", "compare", "judging", "evaluation"},
    {"report"},
    {"AREA"},
    {"plan"},
    {"prints", "runs", "replay"},
    {"audit"},
    {"console"},
    {"cli"},
    {"__main__"},
)
LEVEL = {name: level for level, layer in enumerate(LAYERS) for name in layer}
Rule = Callable[[ast.Module], Iterator[str]]


@cache
def tree(file: Path) -> ast.Module:
    return ast.parse(file.read_text("utf8"))


def named(file: Path) -> str:
    return str(file.relative_to(SOURCE))


def imported(module: ast.Module) -> Iterator[tuple[str, int]]:
    """Every module that is imported, anywhere, in full."""
    for node in ast.walk(module):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            yield str(node.module), node.lineno
            yield from ((f"{node.module}.{alias.name}", node.lineno) for alias in node.names)


def unit(file: Path) -> str:
    """The part of the house that a file belongs to: a core module, an area, or the report."""
    return file.relative_to(SOURCE).parts[0].removesuffix(".py")


def layer(name: str) -> int:
    return LEVEL["AREA"] if name in AREAS else LEVEL[name]


def ours(name: str) -> str | None:
    """The unit that an imported name belongs to, if it is one of ours."""
    parts = name.split(".")
    return parts[1] if parts[0] == "buckler" and len(parts) > 1 and not parts[1].startswith("__version") else None


# The rules.


def steps(module: ast.Module) -> Iterator[str]:
    """Training: `.step()` without arguments or with a closure, and anything out of torch.optim."""
    for node in ast.walk(module):
        method = node.func.attr if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) else ""
        if isinstance(node, ast.Call) and method == "step" and not node.args:
            yield f"line {node.lineno}: .step()"
        if isinstance(node, ast.Attribute) and ast.unparse(node).endswith("torch.optim"):
            yield f"line {node.lineno}: torch.optim"
    yield from (f"line {line}: {name}" for name, line in imported(module) if name.startswith("torch.optim"))


def kwargs(module: ast.Module) -> Iterator[str]:
    for node in ast.walk(module):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda) and node.args.kwarg:
            yield f"line {node.lineno}: **{node.args.kwarg.arg}"


def parameters(module: ast.Module) -> Iterator[str]:
    """Of functions (a class's own are its fields); `self` is not counted."""
    for node in ast.walk(module):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            names = [a.arg for a in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)]
            many = len([name for name in names if name not in ("self", "cls")])
            if many > (WORDS if node.name == "evaluate" else PARAMETERS):
                yield f"line {node.lineno}: {node.name} has {many} parameters"


def long_functions(module: ast.Module) -> Iterator[str]:
    for node in ast.walk(module):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            many = (node.end_lineno or 0) - node.lineno + 1
            if many > FUNCTION_LINES:
                yield f"line {node.lineno}: {node.name} has {many} lines"


def bases(module: ast.Module) -> Iterator[str]:
    """Only these may be derived from; and pydantic's model with its settings, which stays in its own file."""
    classes = [node for node in ast.walk(module) if isinstance(node, ast.ClassDef)]
    settled = {c.name for c in classes if [ast.unparse(base).rpartition(".")[2] for base in c.bases] == ["BaseModel"]}
    for node in classes:
        for base in node.bases:
            name = ast.unparse(base).partition("[")[0].rpartition(".")[2]
            if name not in BASES | BUILT_IN | settled:
                yield f"line {node.lineno}: {node.name}({name})"


def is_container(value: ast.expr | None) -> bool:
    if isinstance(value, ast.List | ast.Dict | ast.Set | ast.ListComp | ast.DictComp | ast.SetComp):
        return True
    made = isinstance(value, ast.Call) and ast.unparse(value.func).partition("[")[0].rpartition(".")[2]
    return made in {"list", "dict", "set", "defaultdict", "Counter", "deque", "bytearray", "OrderedDict"}


MUTATING = {"append", "extend", "add", "update", "pop", "popitem", "clear", "remove", "insert", "setdefault", "discard"}


def state(module: ast.Module) -> Iterator[str]:
    """Containers of a module are constants, in capitals, and never written to; and there is no `global`."""
    held: set[str] = set()
    for node in module.body:
        if not isinstance(node, ast.Assign | ast.AnnAssign):
            continue
        for target in node.targets if isinstance(node, ast.Assign) else [node.target]:
            if isinstance(target, ast.Name) and is_container(node.value):
                held.add(target.id)
                if not re.fullmatch(r"_?[A-Z][A-Z0-9_]*|__\w+__", target.id):
                    yield f"line {node.lineno}: {target.id} can be changed"
    for node in ast.walk(module):
        if isinstance(node, ast.Global):
            yield f"line {node.lineno}: global {', '.join(node.names)}"
        written = (
            node.func.value
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in MUTATING
            else node.value
            if isinstance(node, ast.Subscript) and isinstance(node.ctx, ast.Store | ast.Del)
            else node.target
            if isinstance(node, ast.AugAssign)
            else None
        )
        if isinstance(written, ast.Name) and written.id in held:
            yield f"line {node.lineno}: {written.id} is written to"


def unsafe(module: ast.Module) -> Iterator[str]:
    """Nothing is unpickled: no pickle, no joblib.load, no torch.load but with weights_only=True, no allow_pickle."""
    for name, line in imported(module):
        if name.partition(".")[0] in {"pickle", "cPickle", "dill", "cloudpickle", "marshal", "shelve"}:
            yield f"line {line}: import {name}"
        if name == "joblib.load":
            yield f"line {line}: {name}"
    for node in ast.walk(module):
        if isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            given = {k.arg: ast.unparse(k.value) for k in node.keywords}
            if name == "joblib.load" or (name == "torch.load" and given.get("weights_only") != "True"):
                yield f"line {node.lineno}: {name}"
            if given.get("allow_pickle", "False") != "False":
                yield f"line {node.lineno}: allow_pickle"
            if name in {"eval", "exec"}:
                yield f"line {node.lineno}: {name}"


def prints(module: ast.Module) -> Iterator[str]:
    for node in ast.walk(module):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print":
            yield f"line {node.lineno}: print"


def literal_attributes(module: ast.Module) -> Iterator[str]:
    for node in ast.walk(module):
        called = ast.unparse(node.func) if isinstance(node, ast.Call) else ""
        if isinstance(node, ast.Call) and called in ("hasattr", "getattr") and isinstance(node.args[1], ast.Constant):
            yield f"line {node.lineno}: {ast.unparse(node)}"


def torchvision(module: ast.Module) -> Iterator[str]:
    for name, line in imported(module):
        if name.partition(".")[0] in {"torchvision", "timm", "torchaudio"}:
            yield f"line {line}: {name}"


def network(module: ast.Module) -> Iterator[str]:
    for name, line in imported(module):
        if name in NETWORK or name.partition(".")[0] in NETWORK:
            yield f"line {line}: {name}"


RULES: dict[Rule, str] = {
    steps: "optimizer.step()",
    kwargs: "def f(**more): ...",
    parameters: f"def f({', '.join(f'a{i}' for i in range(13))}): ...",
    long_functions: "def f():\n" + "    pass\n" * 121,
    bases: "class Mine(Other): ...",
    state: "known = {}\nKNOWN = []\ndef f():\n    KNOWN.append(1)\n",
    unsafe: "import torch\ntorch.load('x')",
    prints: "print(1)",
    literal_attributes: "hasattr(x, 'y')",
    torchvision: "from torchvision import models",
    network: "import urllib.request",
}
EVERYWHERE = [rule for rule in RULES if rule not in (steps, network)]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_every_rule_finds_its_offence(rule: Rule) -> None:
    assert list(rule(ast.parse(RULES[rule])))


@pytest.mark.parametrize(
    "text",
    [
        "known: list = []",
        "global x",
        "from pickle import loads",
        "torch.load(f, weights_only=False)",
        "np.load(f, allow_pickle=True)",
        "joblib.load(f)",
        "KNOWN = {}\nKNOWN['a'] = 1",
        "KNOWN = dict()\ndel KNOWN['a']",
    ],
)
def test_other_offences_are_found_too(text: str) -> None:
    module = ast.parse(text)
    assert [*state(module), *unsafe(module)]


@pytest.mark.parametrize("rule", EVERYWHERE, ids=lambda rule: rule.__name__)
def test_no_file_breaks_a_rule(rule: Rule) -> None:
    broken = [f"{named(file)} {what}" for file in FILES for what in rule(tree(file))]
    assert broken == []


def test_one_module_trains() -> None:
    assert {named(file) for file in FILES if any(steps(tree(file)))} == {"train.py"}


def test_the_network_is_reached_from_two_modules() -> None:
    assert {file.stem for file in FILES if any(network(tree(file)))} == MAY_REACH_OUT


def test_files_are_short() -> None:
    assert [named(f) for f in FILES if len(f.read_text("utf8").splitlines()) > LINES] == []


def test_imports_go_down() -> None:
    wrong: list[str] = []
    for file in FILES:
        here = unit(file)
        for name, line in imported(tree(file)):
            there = ours(name)
            known = there is not None and there != here and (there in LEVEL or there in AREAS)
            if known and (layer(str(there)) > layer(here) or (here in AREAS and there in AREAS)):
                wrong.append(f"{named(file)} line {line}: imports {there}")
    assert wrong == []


def test_core_names_no_area() -> None:
    """Neither in an import nor in a text: methods are reached through `find`, and plans are data."""
    wrong: list[str] = []
    for file in FILES:
        if unit(file) in AREAS or file.parent != SOURCE:
            continue
        nodes = list(ast.walk(tree(file)))
        documented = [n for n in nodes if isinstance(n, ast.Module | ast.FunctionDef | ast.ClassDef)]
        docs = {ast.get_docstring(n, clean=False) for n in documented}
        texts = [n for n in nodes if isinstance(n, ast.Constant) and isinstance(n.value, str) and n.value not in docs]
        found = [n for n in texts for area in AREAS if re.fullmatch(rf"{area}(/\w+)?", str(n.value))]
        wrong += [f"{named(file)} line {node.lineno}: {node.value!r}" for node in found]
        wrong += [f"{named(file)} imports {name}" for name, _ in imported(tree(file)) if ours(name) in AREAS]
    assert wrong == []


def test_every_core_module_has_its_layer() -> None:
    units = {unit(file) for file in FILES} - set(AREAS)
    assert units == set(LEVEL) - {"AREA"}


def test_there_are_no_configuration_files() -> None:
    """Plans are data, and so are the severity table, the starter and the catalogues; there are no others."""
    data = {"severity.toml", "starter.toml"}
    found = [p for p in SOURCE.rglob("*") if p.suffix in {".toml", ".yaml", ".yml", ".ini", ".cfg", ".json"}]
    strange = [named(p) for p in found if p.parts[-2] not in ("plans", "catalogues") and p.name not in data]
    assert [name for name in strange if not name.endswith("schema.json")] == []


def test_windows_of_eight_lines_are_not_copied() -> None:
    """Of all windows of eight lines of code (no blanks, comments or imports), fewer than 1 % stand twice."""
    windows: Counter[tuple[str, ...]] = Counter()
    for file in FILES:
        lines = [line.strip() for line in file.read_text("utf8").splitlines()]
        lines = [line for line in lines if line and not line.startswith(("#", "import ", "from ", '"""'))]
        windows.update(tuple(lines[i : i + 8]) for i in range(len(lines) - 7))
    copied = sum(many for many in windows.values() if many > 1)
    share = copied / sum(windows.values())
    worst = [" / ".join(window[:3]) for window, many in windows.most_common(5) if many > 1]
    assert share < 0.01, f"{share:.2%}: {worst}"


# The anatomy of a method file.

PATHS = [found.path for found in cards()]


@pytest.mark.parametrize("path", PATHS)
def test_a_method_file_is_built_as_they_all_are(path: str) -> None:
    found = card(path)
    module = tree(found.file)
    public = [n for n in module.body if isinstance(n, ast.FunctionDef) and not n.name.startswith("_")]
    assert [n.name for n in public] == [found.file.stem], "one public function, named like the file"
    (function,) = public
    arguments = [*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs]
    assert all(argument.annotation is not None for argument in arguments), "fully annotated"
    assert not function.args.defaults, "knobs are keyword-only"
    assert function.args.vararg is None
    assert len(arguments) <= PARAMETERS
    assert ast.get_docstring(function)
    assert re.match(r"https://", found.reference), "the address of the paper"
    assert found.title
    assert found.tags
    whole = ast.get_docstring(module) or ""
    assert re.search(r"\nTags: .*\Z", whole, re.S), "tags come last"
    if found.kind in ("guard", "loss"):
        assert re.search(r"(?i)guarantee", whole), "a defence says what it guarantees"
    assert (ROOT / "tests" / found.area / f"test_{found.file.stem}.py").is_file(), "its test is named like it"


def test_every_file_of_an_area_is_a_method_or_a_helper() -> None:
    public = [file for area in AREAS for file in (SOURCE / area).glob("*.py") if not file.name.startswith("_")]
    allowed = {*PATHS, *(f"{area}/{name}" for area in AREAS for name in ("evaluate", "judge"))}
    assert [named(file) for file in public if f"{file.parent.name}/{file.stem}" not in allowed] == []
    for area in AREAS:
        init = tree(SOURCE / area / "__init__.py")
        assert len(init.body) == 1, "an area's __init__ is its docstring"
        assert ast.get_docstring(init)


@pytest.mark.parametrize("path", PATHS)
def test_a_knob_does_not_hide_what_its_area_s_evaluate_is_asked(path: str) -> None:
    """Plans and flags name both; the limit and the seed are meant to be the same."""
    evaluate = tree(SOURCE / path.partition("/")[0] / "evaluate.py")
    asked = next(n for n in evaluate.body if isinstance(n, ast.FunctionDef) and n.name == "evaluate").args.kwonlyargs
    knobs = {knob.name for knob in card(path).knobs}
    limit = {"share"} if card(path).kind == "poison" else {"ball"}
    assert knobs & {a.arg for a in asked} <= {"seed", "goal"} | limit
