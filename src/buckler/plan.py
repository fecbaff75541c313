"""A plan says which methods an audit runs, with which knobs, cheapest decisive trials first. Plans are data.

`plans/*.toml` ship with the package; a path names a user's own. Every row is checked against the signatures of its
method and of its area's `evaluate` before anything runs.
"""

from __future__ import annotations

import inspect
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, cast

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from buckler.catalog import find
from buckler.flags import fits, hints, named
from buckler.method import Method, describe, plain
from buckler.threat import NORMS, Ball, Norm, Share

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # pyright: ignore[reportMissingImports]

OWN = ("method", "passes", "curve", "rows")
METHODS = {
    "through": ("extract",),
    "attack": ("evade", "poison", "extract"),
    "defence": ("protect", "guard"),
    "pretraining": ("pretrain",),
}
"""What is asked for by the path of a method, and of which kinds it may be."""
MEMBERSHIP = "NISTAML.033"
"""The tag of what is about members."""


Radius = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class BadPlan(ValueError):
    """A plan that cannot be run, in one sentence."""


class Row(BaseModel):
    """One `[[trial]]` table; what is not named here is a knob of the method or of its area's `evaluate`."""

    model_config = ConfigDict(extra="allow", frozen=True)
    method: str
    ball: str | None = None
    """How far inputs may be moved, where the area limits that: `linf:0.1`, or a bare `linf`."""
    share: str | None = None
    """How many training rows may be touched, where the area limits that: `5%`; none given means the data as it is."""
    rows: int | None = Field(default=None, ge=1, strict=True)
    passes: float = Field(default=100, gt=0)
    """Forward and backward passes per row, about: what the budget is planned with."""
    curve: bool = False
    """Whether to run the plan's grid of radii."""


class Plan(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)
    name: str = ""
    title: str
    rows: int = Field(ge=1, strict=True)
    """Test rows per trial, unless a trial says otherwise."""
    grid: tuple[Radius, ...] = Field(default=(0.125, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0), min_length=1)
    """Radii of a curve, as shares of the reference radius."""
    limits: dict[Norm, Radius]
    """The reference radius per norm, where the subject names none."""
    trial: tuple[Row, ...] = Field(min_length=1)


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

    @property
    def aim(self) -> tuple[str, str, str]:
        """What the adversary changes, within which limit, and what for."""
        if "ball" in self.asked:
            return "input", str(self.asked["ball"]), "any wrong label"
        described = describe(self.method)
        members = described.kind == "guard" and any(MEMBERSHIP in tag for tag in described.tags)
        if members or described.kind in ("infer", "protect", "audit", "unlearn"):
            return "nothing", "queries", "which rows were learnt from"
        if described.kind in ("extract", "guard", "own", "watch"):
            return "nothing", "queries", "a copy of the model"
        if described.kind == "reconstruct":
            return "nothing", "what is revealed", "what is in the rows learnt from"
        if described.kind == "guess":
            return "nothing", "queries", "what is behind the answers"
        return "training data", str(self.asked.get("share", "as it is")), "the label of its choice"

    @property
    def named(self) -> str:
        """The method and its limit, as a reader is told of it."""
        limit = self.asked.get("ball") or self.asked.get("share")
        return self.path if limit is None else f"{self.path} at {limit}"

    @property
    def measures(self) -> str:
        """What of the subject is looked at: its `model`, or its `encoder`, which may be pre-trained on its rows."""
        return measures(self.area)


def measures(area: str) -> str:
    """What of the subject an area looks at; see `Job.measures`."""
    return vars(import_module(f"buckler.{area}.evaluate")).get("MEASURES", "model")


def read(name: str | Path) -> Plan:
    """The plan of the package called `name` (quick, full, ...), or the one in a file."""
    shipped = files("buckler") / "plans" / f"{name}.toml"
    path = Path(name)
    if shipped.is_file():
        path = Path(str(shipped))
    elif path.suffix == ".toml" and path.is_file():
        pass
    else:
        known = sorted(p.name.removesuffix(".toml") for p in (files("buckler") / "plans").iterdir())
        raise BadPlan(f"expected a plan out of {', '.join(known)} or a .toml file, got {str(name)!r}")
    try:
        return valid({"name": path.stem, **tomllib.loads(path.read_text("utf-8-sig"))}, str(name))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise BadPlan(f"plan {name}: not TOML ({error})") from None


def valid(content: object, name: str) -> Plan:
    """`content` as a plan, or `BadPlan` with the first thing that is wrong."""
    try:
        return Plan.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part + 1 if isinstance(part, int) else part) for part in first["loc"]) or "the file"
        what = f"{first['msg'][0].lower()}{first['msg'][1:]}"
        got = "nothing: add it" if first["type"] == "missing" else repr(first["input"])
        raise BadPlan(f"{name if '/' in name else f'plan {name}'}: {where}: {what}, got {got}") from None


def jobs(plan: Plan, limits: Mapping[str, float], *, seed: int = 0, rows: int | None = None) -> list[Job]:
    """The trials of a plan, checked against the signatures; `limits` of the subject come before the plan's."""
    reference = {**plan.limits, **limits}
    if abs(seed) >= 2**63:
        raise BadPlan(f"expected a seed of at most 63 bits, got {seed}")
    made = [_job(row, index, plan, reference, seed, rows) for index, row in enumerate(plan.trial)]
    seen = dict[str, int]()
    for index, job in enumerate(made):
        key = repr([plain(job.method), sorted((name, plain(value)) for name, value in job.asked.items())])
        if key in seen:
            raise BadPlan(
                f"plan {plan.name}: expected different trials, got {job.path} twice: as {seen[key]} and {index + 1}"
            )
        seen[key] = index + 1
    return made


def _job(row: Row, index: int, plan: Plan, limits: Mapping[str, float], seed: int, rows: int | None) -> Job:
    where = f"plan {plan.name}, trial {index + 1} ({row.method})" if plan.name else row.method
    try:
        method = find(row.method)
        described = describe(method)
    except (ValueError, LookupError) as error:
        raise BadPlan(f"{where}: {error}") from None
    area = row.method.partition("/")[0]
    module = import_module(f"buckler.{area}.evaluate")
    evaluate = module.evaluate
    asks = dict(inspect.signature(evaluate).parameters)
    asked: dict[str, Any] = {"rows": rows or row.rows or plan.rows, "seed": seed, **_limit(row, asks, limits, where)}
    knobs: dict[str, Any] = {}
    for key, value in (row.model_extra or {}).items():
        if key in asks and key not in ("seed", "subject", "method", "tick"):
            usual = asks[key].default
            kinds = hints(evaluate)
            asked[key] = _method(value, key, area, where) if key in METHODS else _sound(key, value, kinds, where, usual)
        elif key in described.knobs and key not in ("ball", "share", "seed"):
            knobs[key] = _sound(key, value, hints(find(row.method)), where, described.params.get(key))
        else:
            known = ", ".join(sorted(({*described.knobs, *asks, *OWN}) - {"subject", "tick", "seed"}))
            raise BadPlan(f"{where}: unknown key {key!r}, expected one of {known}")
    try:
        vars(module).get("fitting", _anything)(described.kind, asked, row.method)
    except ValueError as error:
        raise BadPlan(f"{where}: {error}") from None
    if "share" in asked and "attack" not in asked and described.kind not in ("poison", "bag"):
        raise BadPlan(f"{where}: a share is of rows that an attack touches, and none is named: add attack, or no share")
    if row.curve:
        if "ball" not in asked:
            raise BadPlan(f"{where}: a curve is over radii, and this area has none: remove curve")
        radius = float(asked["ball"].radius)
        if not math.isfinite(radius):
            raise BadPlan(f"{where}: a curve needs a finite radius, got {asked['ball']}")
        asked["radii"] = tuple(share * radius for share in sorted(plan.grid))
    configured = partial(method, **knobs) if knobs else method
    return Job(configured, row.method, asked, row.passes)


def _anything(_kind: str, _asked: Mapping[str, object], _path: str) -> None:
    """Where an area does not say itself what a kind of its methods makes nothing of, beside its `evaluate`."""


def _limit(row: Row, asks: Mapping[str, inspect.Parameter], limits: Mapping[str, float], where: str) -> dict[str, Any]:
    """The limit that the area knows, as its `evaluate` takes it; one that it does not know is refused."""
    for name, given in (("ball", row.ball), ("share", row.share)):
        if given is not None and name not in asks:
            raise BadPlan(f"{where}: unknown key {name!r}, expected {'share' if name == 'ball' else 'ball'}")
    if row.ball is not None and row.share is not None:
        raise BadPlan(f"{where}: expected a ball or a share, got both: no method makes use of both")
    if "ball" in asks and (row.ball is not None or asks["ball"].default is inspect.Parameter.empty):
        if row.ball is None:
            raise BadPlan(f"{where}: ball: expected a limit such as linf:8/255, or a norm such as linf, got nothing")
        return {"ball": _ball(row.ball, limits, where)}
    try:
        return {} if row.share is None else {"share": Share.parse(row.share)}
    except ValueError as error:
        raise BadPlan(f"{where}: {error}") from None


def _method(value: object, key: str, area: str, where: str) -> Method:
    """A surrogate's maker or a guard, of any area, or an attack or a defence of the trial's own, by its path, or by a
    table of that, as `method`, and its knobs."""
    knobs = dict(cast("Mapping[str, Any]", value)) if isinstance(value, dict) else {"method": value}
    path = str(knobs.pop("method", ""))
    kinds = METHODS[key]
    try:
        found = find(path)
        described = describe(found)
        kind = described.kind
        if kind not in kinds or (key != "through" and kind != "guard" and path.partition("/")[0] != area):
            wanted = " or ".join(kinds) + (f" in {area}" if key != "through" else "")
            raise ValueError(f"expected a method of the kind {wanted}, got {path}, of {kind}")
    except (ValueError, LookupError) as error:
        raise BadPlan(f"{where}, {key}: {error}") from None
    for name, knob in knobs.items():
        if name not in described.knobs or name in ("ball", "share", "seed"):
            raise BadPlan(f"{where}, {key}: unknown key {name!r}, expected one of {', '.join(sorted(described.knobs))}")
        knobs[name] = _sound(name, knob, hints(found), f"{where}, {key}", described.params.get(name))
    return partial(found, **knobs) if knobs else found


def _sound(key: str, value: Any, kinds: Mapping[str, Any], where: str, default: object = None) -> Any:
    """`value`, if it is what the signature says; counts are at least 1 where they are by default."""
    if not fits(value, kinds[key]):
        raise BadPlan(f"{where}: expected {named(kinds[key])} for {key}, got {value!r}")
    lowest = 0 if key == "goal" else None
    if isinstance(default, int) and not isinstance(default, bool):
        lowest = min(default, 1)
    if isinstance(lowest, int) and isinstance(value, int) and value < lowest:
        raise BadPlan(f"{where}: expected {key} of at least {lowest}, got {value}")
    if key.endswith("epochs") and isinstance(value, float) and value <= 0:
        raise BadPlan(f"{where}: expected {key} above 0, got {value:g}")
    radii = cast("Sequence[float]", value) if key == "radii" else ()
    if not (list(radii) == sorted({*radii}) and all(0 < radius < math.inf for radius in radii)):
        raise BadPlan(f"{where}: expected radii above 0 in ascending order, got {value}")
    return value


def _ball(text: str, limits: Mapping[str, float], where: str) -> Ball:
    """`linf:0.1` as it says; a bare `linf` at the reference radius."""
    try:
        if text in NORMS:
            if text not in limits:
                raise ValueError(f"there is no reference radius for {text}: name one under [limits]")
            return Ball(text, limits[text])
        ball = Ball.parse(text)
        if ball.radius == 0:
            raise ValueError(f"expected a radius above 0, got {text!r}")
        return ball
    except (ValueError, OverflowError) as error:
        raise BadPlan(f"{where}: {error}") from None
