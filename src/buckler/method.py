"""What a method says about itself: its path, kind, parameters, source and what it holds, read from its signature.

A method is a function of one of the shapes in `kinds`, or a `functools.partial` of one. Nothing is registered: the
module is the path, the first annotation is the threat model, the return annotation is the kind.
"""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, cast

from torch import Tensor, nn

from buckler.data import Rows
from buckler.kinds import KINDS
from buckler.target import Oracle
from buckler.threat import Ball, Share, pinned

Method = Callable[..., Any]
Holds = Literal["model", "data", "labels", "scores", "logits", "features"]


@dataclass(frozen=True)
class Described:
    path: str
    kind: str
    holds: Holds
    """`model`, `data`, or what the oracle that it asks for must reveal."""
    params: dict[str, object]
    """Every keyword-only parameter with its value as JSON holds it; one that must still be given is absent."""
    knobs: tuple[str, ...]
    tags: tuple[str, ...]
    source: str


def describe(method: Method) -> Described:
    """Read a method; a `ValueError` says what is wrong with one that fits no kind."""
    function, bound = _unwrap(method)
    path = _path(function)
    hints = inspect.get_annotations(function)
    parameters = list(inspect.signature(function).parameters.values())
    returns = str(hints.get("return", "")).rpartition(".")[2]
    if returns not in KINDS or not parameters:
        raise ValueError(f"{path}: expected a return annotation out of {', '.join(KINDS)}, got {returns or 'none'!r}")
    knobs = [p for p in parameters if p.kind is p.KEYWORD_ONLY]
    values = {p.name: bound.get(p.name, p.default) for p in knobs}
    unknown = set(bound) - set(values)
    if unknown:
        raise ValueError(f"{path}: unknown parameter {sorted(unknown)[0]!r}, expected one of {', '.join(values)}")
    module = inspect.getmodule(function)
    return Described(
        path=path,
        kind=KINDS[returns],
        holds=_holds(path, function, parameters[0].name),
        params={name: plain(value) for name, value in values.items() if value is not inspect.Parameter.empty},
        knobs=tuple(values),
        tags=pinned((module.__doc__ if module else None) or ""),
        source=inspect.getsource(module) if module else "",
    )


def held(holds: Holds, target: nn.Module | Oracle, budget: int | None = None) -> nn.Module | Oracle:
    """What a method that holds `holds` may have of `target`; a `ValueError` if the target does not reveal as much."""
    if holds == "data":
        raise ValueError("works on training data, and a model was given")
    if holds == "model":
        if isinstance(target, Oracle):
            raise ValueError("needs the model itself, and only its answers can be had")
        return target
    if isinstance(target, nn.Module):
        return Oracle(target, holds, budget)
    if holds == target.reveals:
        return target.narrowed(holds, budget)
    order = ("labels", "scores", "logits")
    if holds not in order or target.reveals not in order or order.index(target.reveals) < order.index(holds):
        raise ValueError(f"needs {holds}, and the target reveals {target.reveals} only")
    return target.narrowed(holds, budget)


def left_open(method: Method, *names: str) -> set[str]:
    """Those of the knobs `names` that the method asks for and is not configured with: an evaluation fills them in."""
    _, bound = _unwrap(method)
    return set(names) & set(describe(method).knobs) - set(bound)


def plain(value: object) -> object:
    """`value` as JSON holds it: limits as their text, tensors by shape, functions by path."""
    if isinstance(value, Tensor):
        return f"tensor{tuple(value.shape)}"
    if isinstance(value, list | tuple):
        return [plain(item) for item in cast("list[object]", value)]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, partial) or inspect.isfunction(value):
        function, bound = _unwrap(value)
        return (
            {"method": _path(function), **{key: plain(item) for key, item in bound.items()}}
            if bound
            else _path(function)
        )
    return str(value) if isinstance(value, Ball | Share) else type(value).__name__


def _unwrap(method: Method) -> tuple[Callable[..., Any], Mapping[str, object]]:
    bound: dict[str, object] = {}
    while isinstance(method, partial):
        if method.args:
            raise ValueError("expected a method configured by keywords only, got a partial with positional arguments")
        bound = {**method.keywords, **bound}
        method = method.func
    return method, bound


def _path(function: Callable[..., Any]) -> str:
    module = function.__module__
    if module.startswith("buckler.") and module.rpartition(".")[2] == function.__name__:
        return module.removeprefix("buckler.").replace(".", "/")
    return f"{module}:{function.__qualname__}"


def _holds(path: str, function: Callable[..., Any], first: str) -> Holds:
    hint = typing.get_type_hints(function, include_extras=True).get(first)
    if hint is nn.Module:
        return "model"
    if hint == Rows:
        return "data"
    if typing.get_origin(hint) is typing.Annotated and typing.get_args(hint)[0] is Oracle:
        return typing.get_args(hint)[1]
    raise ValueError(
        f"{path}: expected the first parameter annotated nn.Module, Rows, ScoreOracle or LabelOracle, got {hint}"
    )
