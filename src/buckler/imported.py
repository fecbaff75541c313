"""The user's own functions, `module:name`, imported from beside their file and called there.

Whatever a user's code raises becomes one sentence with its place; what it prints goes to stderr; and what it sets for
all of torch is set back.
"""

from __future__ import annotations

import difflib
import hashlib
import importlib
import inspect
import sys
from collections.abc import Callable, Generator
from contextlib import contextmanager, redirect_stdout, suppress
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from buckler.method import plain
from buckler.target import Oracle

FILE = "buckler.toml"


class BadSubject(ValueError):
    """What was given cannot be audited: one sentence says what was expected, what came, and what to do."""


def imported(folder: Path, key: str, text: str) -> Callable[..., Any]:
    """The function `module:name`, imported with `folder` first on the path, and called so too."""
    module, _, name = text.partition(":")
    if not all(part.isidentifier() for part in (*module.split("."), name)):
        files = " or a .npz file" if key in ("test", "train") else ""
        raise BadSubject(f"{key}: expected 'module:function'{files}, got {text!r}")
    with _beside(folder):
        try:
            found = getattr(importlib.import_module(module), name, None)
        except ModuleNotFoundError as error:
            raise BadSubject(f"{key} = {text!r}: no module {error.name!r} in {folder} or installed") from error
        except (Exception, SystemExit) as error:  # whatever the user's module does while it is imported
            raise BadSubject(f"{key} = {text!r}: {module} cannot be imported: {raised(error)}") from error
    if not callable(found):
        names = [n for n, value in vars(sys.modules[module]).items() if callable(value) and not n.startswith("_")]
        near = difflib.get_close_matches(name, names, 1)
        hint = f": did you mean {near[0]!r}?" if near else ""
        raise BadSubject(f"{key} = {text!r}: expected a function {name!r} in {module}, got none{hint}")
    return partial(_called, folder, f"{key} = {text!r}", found)


def _called(folder: Path, what: str, function: Callable[..., Any], *given: object) -> object:
    with _beside(folder):
        try:
            return function(*given)
        except (Exception, SystemExit) as error:  # the user's function may fail in any way
            raise BadSubject(f"{what}: the function raised {raised(error)}") from error


@contextmanager
def _beside(folder: Path) -> Generator[None, None, None]:
    """Import from `folder` first, whatever another folder's modules were called; prints go to stderr."""
    for path in (*folder.glob("*.py"), *folder.glob("*/__init__.py")):
        name = path.parent.name if path.stem == "__init__" and path.parent != folder else path.stem
        there = vars(sys.modules[name]).get("__file__") if name in sys.modules else None
        if there and Path(there) != path and _theirs(name, Path(there)):
            for stale in [key for key in sys.modules if key == name or key.startswith(f"{name}.")]:
                del sys.modules[stale]
    importlib.invalidate_caches()
    sys.path.insert(0, str(folder))
    try:
        with redirect_stdout(sys.stderr), _as_before():
            yield
    finally:
        sys.path.remove(str(folder))


@contextmanager
def _as_before() -> Generator[None, None, None]:
    """Set back what holds for all of torch: a user's code may turn gradients off, say, and never on again."""
    gradients, dtype = torch.is_grad_enabled(), torch.get_default_dtype()
    device, threads = torch.get_default_device(), torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_grad_enabled(gradients)
        torch.set_default_dtype(dtype)
        if torch.get_default_device() != device:
            torch.set_default_device(device)
        if torch.get_num_threads() != threads:
            torch.set_num_threads(threads)


def _theirs(name: str, file: Path) -> bool:
    """Whether a loaded module is a user's own, and not one of Python, of Buckler, or installed."""
    installed = {"site-packages", "dist-packages"} & set(file.parts)
    return not installed and name not in sys.stdlib_module_names and name != __name__.partition(".")[0]


def raised(error: BaseException) -> str:
    """What an error says and where, unless no line of the user's own was reached."""
    trace, place = error.__traceback__, ""
    while trace is not None:
        file = trace.tb_frame.f_code.co_filename
        ours = file.startswith("<frozen") or Path(file).parent == Path(__file__).parent
        place = "" if ours else f" ({Path(file).name}, line {trace.tb_lineno})"
        trace = trace.tb_next
    text = in_a_line(str(error))
    return f"{type(error).__name__}{f': {text}' if text else ''}{place}"


def in_a_line(text: str) -> str:
    """An error's text on one line that any terminal can show: it may hold control characters, and be long."""
    return "".join(c if c.isprintable() else "?" for c in " ".join(text.split()))[:300]


def kind_of(value: object) -> str:
    """What something is, in a word or two for a sentence."""
    many = f" of {len(cast('tuple[object, ...]', value))}" if isinstance(value, tuple | list) else ""
    return "None" if value is None else f"{type(value).__name__}{many}"


def written(value: object) -> object:
    """A function or class by its name and the file that it is written in, with what it is configured with."""
    if isinstance(value, partial):
        given = {**{str(place): item for place, item in enumerate(value.args)}, **value.keywords}
        return [written(value.func), {name: written(item) for name, item in given.items()}]
    if not callable(value):
        return plain(value)
    made = value if inspect.isroutine(value) or inspect.isclass(value) else type(value)
    with suppress(OSError, TypeError):  # of what is built in, or was typed in
        return [made.__qualname__, hashlib.sha256(Path(inspect.getfile(made)).read_bytes()).hexdigest()]
    return made.__qualname__


def classes(model: nn.Module | Oracle | None) -> list[str]:
    """Of a model that can be seen into: how its modules compute, which their weights and names do not say."""
    return sorted({str(written(type(part))) for part in model.modules()}) if isinstance(model, nn.Module) else []


class _Float32(nn.Module):
    """A model of another precision, as the float32 inputs of an audit need it: cast going in and coming out."""

    def __init__(self, model: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.model, self.dtype = model, dtype
        self.train(model.training)

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x.to(self.dtype)).float()


def usable(model: nn.Module, what: str) -> nn.Module:
    """`model` as it can be measured, with float32 in and out; `BadSubject` if it has no weights or cannot be hooked."""
    if isinstance(model, torch.jit.ScriptModule):
        raise BadSubject(
            f"{what}: expected an nn.Module in Python, got a {type(model).__name__} of torch.jit: "
            "build the network in Python and load its weights"
        )
    if any(is_lazy(tensor) or tensor.is_meta for tensor in (*model.parameters(), *model.buffers())):
        raise BadSubject(
            f"{what}: expected a model with its weights, got lazy or meta parameters: load the weights "
            "(a lazy layer has its shape after one forward pass)"
        )
    dtypes = {parameter.dtype for parameter in model.parameters() if parameter.is_floating_point()}
    return _Float32(model, dtypes.pop()) if len(dtypes) == 1 and torch.float32 not in dtypes else model
