"""A plan says which methods an audit runs, with which knobs, cheapest decisive trials first. Plans are data.

`plans/*.toml` ship with the package; a path names a user's own. Every row is checked against the signatures of its
method and of its area's `evaluate` before anything runs.
"""

from __future__ import annotations

import inspect
import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from importlib.resources import files
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from buckler.catalog import find
from buckler.method import Method, describe
from buckler.threat import NORMS, Ball

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

OWN = ("method", "passes", "curve", "rows")
METHODS = ("through", "attack")


class BadPlan(ValueError):
    """A plan that cannot be run, in one sentence."""


class Row(BaseModel):
    """One `[[trial]]` table; what is not named here is a knob of the method or of its area's `evaluate`."""

    model_config = ConfigDict(extra="allow", frozen=True)
    method: str
    ball: str
    rows: int | None = Field(default=None, ge=1)
    passes: float = Field(default=100, gt=0)
    """Forward and backward passes per row, about: what the budget is planned with."""
    curve: bool = False
    """Whether to run the plan's grid of radii."""


class Plan(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)
    name: str = ""
    title: str
    rows: int = Field(ge=1)
    """Test rows per trial, unless a trial says otherwise."""
    grid: tuple[float, ...] = (0.125, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0)
    """Radii of a curve, as shares of the reference radius."""
    limits: dict[str, float]
    """The reference radius per norm, where the subject names none."""
    trial: tuple[Row, ...]


@dataclass(frozen=True)
class Job:
    """One trial to run: a configured method and what its area's `evaluate` is asked."""

    method: Method
    path: str
    asked: dict[str, Any]
    passes: float

    @property
    def area(self) -> str:
        return self.path.partition("/")[0]


def read(name: str | Path) -> Plan:
    """The plan of the package called `name` (quick, full), or the one in a file."""
    shipped = files("buckler") / "plans" / f"{name}.toml"
    path = Path(name)
    if shipped.is_file():
        text = shipped.read_text("utf8")
    elif path.suffix == ".toml" and path.is_file():
        text = path.read_text("utf8")
    else:
        known = sorted(p.name.removesuffix(".toml") for p in (files("buckler") / "plans").iterdir())
        raise BadPlan(f"expected a plan out of {', '.join(known)} or a .toml file, got {str(name)!r}")
    try:
        return Plan.model_validate({"name": path.stem, **tomllib.loads(text)})
    except tomllib.TOMLDecodeError as error:
        raise BadPlan(f"plan {name}: not TOML ({error})") from None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise BadPlan(f"plan {name}: {where}: {first['msg']}") from None


def jobs(plan: Plan, limits: Mapping[str, float], *, seed: int = 0, rows: int | None = None) -> list[Job]:
    """The trials of a plan, checked against the signatures; `limits` of the subject come before the plan's."""
    reference = {**plan.limits, **limits}
    return [_job(row, index, plan, reference, seed, rows) for index, row in enumerate(plan.trial)]


def _job(row: Row, index: int, plan: Plan, limits: Mapping[str, float], seed: int, rows: int | None) -> Job:
    where = f"plan {plan.name}, trial {index + 1} ({row.method})"
    try:
        method = find(row.method)
        described = describe(method)
    except (ValueError, LookupError) as error:
        raise BadPlan(f"{where}: {error}") from None
    area = row.method.partition("/")[0]
    evaluate = import_module(f"buckler.{area}.evaluate").evaluate
    asks = set(inspect.signature(evaluate).parameters)
    ball = _ball(row.ball, limits, where)
    asked: dict[str, Any] = {"ball": ball, "rows": rows or row.rows or plan.rows, "seed": seed}
    knobs: dict[str, Any] = {}
    for key, value in (row.model_extra or {}).items():
        if key in asks and key not in ("ball", "seed", "subject", "method", "tick"):
            asked[key] = find(value) if key in METHODS else value
        elif key in described.knobs and key not in ("ball", "seed"):
            knobs[key] = value
        else:
            known = ", ".join(sorted((set(described.knobs) | asks | set(OWN)) - {"subject", "tick"}))
            raise BadPlan(f"{where}: unknown key {key!r}, expected one of {known}")
    if row.curve:
        radius = float(ball.radius)
        if not math.isfinite(radius):
            raise BadPlan(f"{where}: a curve needs a finite radius, got {ball}")
        asked["radii"] = tuple(share * radius for share in sorted(plan.grid))
    configured = partial(method, **knobs) if knobs else method
    return Job(configured, row.method, asked, row.passes)


def _ball(text: str, limits: Mapping[str, float], where: str) -> Ball:
    """`linf:0.1` as it says; a bare `linf` at the reference radius."""
    try:
        if text in NORMS:
            if text not in limits:
                raise ValueError(f"there is no reference radius for {text}: name one under [limits]")
            return Ball(text, limits[text])
        return Ball.parse(text)
    except ValueError as error:
        raise BadPlan(f"{where}: {error}") from None
