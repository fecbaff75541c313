"""Command-line words become keyword arguments, by a function's signature: the signature is the configuration."""

from __future__ import annotations

import collections.abc
import difflib
import inspect
import types
import typing
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Annotated, Any, Literal, cast

from torch import Tensor

from buckler.threat import Ball


class BadFlag(ValueError):
    """A flag that does not fit the signature, in one sentence."""


def read(words: Sequence[str], kinds: dict[str, Any]) -> dict[str, object]:
    """The values of `--name value`, `--name=value`, `--name` and `--no-name` for the names in `kinds`."""
    values: dict[str, object] = {}
    left = list(words)
    while left:
        word = left.pop(0)
        if not word.startswith("--") or word == "--":
            raise BadFlag(f"expected a flag such as --{next(iter(kinds), 'seed')}, got {word!r}")
        text, equals, given = word[2:].partition("=")
        name = text.replace("-", "_")
        off = name.removeprefix("no_")
        if name not in kinds and off in kinds and _switch(kinds[off]) and not equals:
            values[off] = False
            continue
        if name not in kinds:
            raise BadFlag(_unknown(name, list(kinds)))
        if _switch(kinds[name]) and not equals:
            said = left and left[0].lower() in ("true", "false", "yes", "no")
            values[name] = convert(left.pop(0), bool) if said else True
            continue
        if not equals and not left:
            raise BadFlag(f"expected a value after {word}, {named(kinds[name])}, got none")
        given = given if equals else left.pop(0)
        try:
            values[name] = convert(given, kinds[name])
        except ValueError as error:
            raise BadFlag(f"--{spelled(name)}: {error}") from None
    return values


def hints(function: Callable[..., object]) -> dict[str, Any]:
    """The keyword-only parameters of `function` and their resolved annotations."""
    resolved = typing.get_type_hints(function)
    parameters = inspect.signature(function).parameters.values()
    return {p.name: resolved.get(p.name, str) for p in parameters if p.kind is p.KEYWORD_ONLY}


def spelled(name: str) -> str:
    return name.replace("_", "-")


def convert(text: str, annotation: Any) -> object:
    """`text` as `annotation` says: a number, a switch, a literal, a limit, a tuple by commas; else a `ValueError`."""
    tried = [_as(text, kind) for kind in _members(annotation)]
    for value in tried:
        if value is not Ellipsis:
            return value
    raise ValueError(f"expected {named(annotation)}, got {text!r}")


def fits(value: object, annotation: Any) -> bool:
    """Whether a value, from a file say, is what `annotation` says; a number with a fraction is no whole number."""
    return any(_is(value, kind) for kind in _members(annotation))


def _is(value: object, kind: Any) -> bool:
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if kind is type(None):
        return value is None
    if kind is float:
        return isinstance(value, int | float) and not isinstance(value, bool) and value == value
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if origin is Literal:
        return value in arguments
    if origin is collections.abc.Callable:
        return callable(value)
    if _several(kind):
        items = cast("list[object]", value) if isinstance(value, tuple | list) else None
        wanted = _each(kind, len(items or ()))
        return items is not None and len(wanted) == len(items) and all(map(fits, items, wanted))
    try:
        return not isinstance(kind, type) or isinstance(value, kind)
    except TypeError:  # a protocol, which cannot be asked
        return True


def _members(annotation: Any) -> tuple[Any, ...]:
    union = typing.get_origin(annotation) in (typing.Union, types.UnionType)
    return tuple(m for part in typing.get_args(annotation) for m in _members(part)) if union else (annotation,)


def _as(text: str, kind: Any) -> object:
    """`text` as one plain kind, or `...` if it is none."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if kind is type(None):
        return None if text.lower() == "none" else Ellipsis
    if kind is bool:
        return {"true": True, "yes": True, "false": False, "no": False}.get(text.lower(), Ellipsis)
    if kind in (int, float):
        try:
            return kind(text) if kind is int or "/" not in text else float(Fraction(text.replace(" ", "")))
        except (ValueError, ZeroDivisionError):
            return Ellipsis
    if origin is Literal:
        return next((value for value in arguments if str(value) == text), Ellipsis)
    if kind is Ball:
        return Ball.parse(text)
    if _several(kind):
        parts = [part.strip() for part in text.split(",") if part.strip()]
        wanted = _each(kind, len(parts))
        return tuple(map(convert, parts, wanted)) if len(wanted) == len(parts) else Ellipsis
    if origin is Annotated:
        return _as(text, arguments[0])
    return text if kind is str else Ellipsis


def _several(kind: Any) -> bool:
    origin = typing.get_origin(kind)
    return isinstance(origin, type) and issubclass(origin, Sequence)


def _each(kind: Any, many: int) -> list[Any]:
    """What each of `many` items has to be, as many as there have to be: all alike, or by place in a plain tuple."""
    arguments = typing.get_args(kind)
    plain = typing.get_origin(kind) is tuple and arguments[-1] is not Ellipsis
    return list(arguments) if plain else [arguments[0]] * many


def _switch(annotation: Any) -> bool:
    return bool in _members(annotation)


def named(annotation: Any) -> str:
    """What `annotation` asks for, in words: its own, where it is annotated with them."""
    words: list[str] = []
    for kind in _members(annotation):
        if kind is Tensor or Tensor in typing.get_args(kind):
            continue  # there are no words for it
        if typing.get_origin(kind) is Literal:
            words += [str(value) for value in typing.get_args(kind)]
        elif typing.get_origin(kind) is Annotated:
            words.append(typing.get_args(kind)[1])
        elif kind is type(None):
            words.append("none")
        elif kind is Ball:
            words.append("a limit such as linf:8/255")
        elif _several(kind):
            many = len(_each(kind, 0))
            words.append(f"{many} numbers with commas between them" if many else "numbers with commas between them")
        elif typing.get_origin(kind) is collections.abc.Callable:
            words.append("a value from Python")
        else:
            words.append({int: "a whole number", float: "a number", bool: "true or false"}.get(kind, "a name"))
    return " or ".join(dict.fromkeys(words)) or "a value from Python"


def _unknown(name: str, known: list[str]) -> str:
    near = difflib.get_close_matches(name, known, 2)
    hint = " or ".join(f"--{spelled(n)}" for n in near) or ", ".join(f"--{spelled(n)}" for n in known)
    return f"unknown flag --{spelled(name)}: expected {hint}"
