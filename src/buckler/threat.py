"""What an adversary may do: limits that measure and project, threats that can be compared, tags that exist.

A limit validates itself, parses itself from the command line (``linf:8/255``), measures and projects. A radius may be
one number or one number per row, `(B,)`: attacks that take a `Ball` therefore run a whole grid of radii, or a
bisection over radii, in one batch.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from fractions import Fraction
from functools import cache
from importlib.resources import files
from typing import Literal, get_args

import torch
from torch import Tensor

Norm = Literal["linf", "l2", "l1", "l0"]
NORMS: tuple[Norm, ...] = get_args(Norm)


@dataclass(frozen=True, eq=False)
class Ball:
    """All inputs within `radius` of a clean one in `norm`; `l0` counts the elements that differ.

    `radius` is a number >= 0 (`math.inf` for "as far as it takes", which minimum-norm attacks understand), or a tensor
    `(B,)` with one radius per row. Membership in the unit box [0, 1] is checked by `contains` and kept by `clip`.
    """

    norm: Norm
    radius: float | Tensor

    def __post_init__(self) -> None:
        if self.norm not in NORMS:
            raise ValueError(f"expected a norm out of {', '.join(NORMS)}, got {self.norm!r}")
        if isinstance(self.radius, Tensor):
            if self.radius.ndim != 1 or not bool((self.radius >= 0).all()):
                raise ValueError("expected one radius >= 0 per row, a tensor (B,)")
        elif not self.radius >= 0:
            raise ValueError(f"expected radius >= 0, got {self.radius}")

    @classmethod
    def parse(cls, text: str) -> Ball:
        """Read `norm:radius`, where the radius is a decimal, a fraction or `inf`: `linf:8/255`, `l2:0.5`, `l0:10`."""
        norm, _, radius = text.partition(":")
        try:
            value = math.inf if radius == "inf" else float(Fraction(radius.replace(" ", "")))
        except (ValueError, ZeroDivisionError):
            raise ValueError(f"expected a limit such as linf:8/255 or l2:0.5, got {text!r}") from None
        if norm not in NORMS:
            raise ValueError(f"expected a norm out of {', '.join(NORMS)}, got {norm!r} in {text!r}")
        return cls(norm, value)

    def __str__(self) -> str:
        if isinstance(self.radius, Tensor):
            low, high = float(self.radius.min()), float(self.radius.max())
            return f"{self.norm}:{low:.6g}..{high:.6g}"
        return f"{self.norm}:{self.radius:.6g}"

    def radii(self, x: Tensor) -> Tensor:
        """The radius of every row of `x`, shaped `(B, 1, ...)` so that it broadcasts over a row's elements."""
        radius = self.radius if isinstance(self.radius, Tensor) else x.new_full((len(x),), self.radius)
        return radius.to(x).view(-1, *[1] * (x.ndim - 1))

    def rows(self, index: Tensor) -> Ball:
        """The same limit for the rows that `index` (boolean or integer) selects."""
        return Ball(self.norm, self.radius[index]) if isinstance(self.radius, Tensor) else self

    def size(self, delta: Tensor) -> Tensor:
        """The norm of every row of `delta` `(B, ...)`: `(B,)`."""
        flat = delta.flatten(1)
        if self.norm == "linf":
            return flat.abs().amax(1)
        if self.norm == "l2":
            return flat.norm(dim=1)
        return flat.abs().sum(1) if self.norm == "l1" else (flat != 0).sum(1).to(delta.dtype)

    def project(self, delta: Tensor) -> Tensor:
        """The closest point of the ball (box not considered) to every row of `delta` `(B, ...)`."""
        radii = self.radii(delta)
        if self.norm == "linf":
            return torch.maximum(torch.minimum(delta, radii), -radii)
        if self.norm == "l2":
            norms = self.size(delta).view_as(radii)
            return delta * torch.where(norms > radii, radii / norms.clamp_min(1e-12), torch.ones_like(norms))
        return _project_l1(delta, radii) if self.norm == "l1" else delta * _largest(delta, radii)

    def clip(self, x: Tensor, moved: Tensor) -> Tensor:
        """Bring `moved` `(B, ...)` into the ball around `x` and into [0, 1].

        For linf and l0 this is the closest legal point; for l2 and l1 it is a legal point (the ball first, then the
        box, which only shrinks the difference).
        """
        if self.norm == "linf":
            radii = self.radii(x)
            return torch.maximum(torch.minimum(moved, x + radii), x - radii).clamp_(0, 1)
        if self.norm == "l0":
            moved = moved.clamp(0, 1)
            return torch.where(_largest(moved - x, self.radii(x)), moved, x)
        return (x + self.project(moved - x)).clamp_(0, 1)

    def contains(self, x: Tensor, moved: Tensor) -> Tensor:
        """Whether every row of `moved` is finite, in [0, 1] and in the ball around `x`, up to rounding: `(B,)`."""
        size, radius = self.size(moved - x), self.radii(x).flatten()
        slack = torch.zeros_like(radius) if self.norm == "l0" else 1e-6 + 1e-5 * radius.nan_to_num(posinf=0)
        flat = moved.flatten(1)
        inside = (flat >= 0).all(1) & (flat <= 1).all(1) & flat.isfinite().all(1)
        return inside & (size <= radius + slack)


@dataclass(frozen=True)
class Share:
    """A share of the training rows that an adversary may touch: a rate above 0 and at most 1."""

    rate: float

    def __post_init__(self) -> None:
        if not 0 < self.rate <= 1:
            raise ValueError(f"expected a share above 0 and at most 1, got {self.rate}")

    @classmethod
    def parse(cls, text: str) -> Share:
        """Read a percentage, a decimal or a fraction: `5%`, `0.05`, `1/20`."""
        number = text.replace(" ", "")
        try:
            rate = float(Fraction(number.removesuffix("%"))) / (100 if number.endswith("%") else 1)
        except (ValueError, ZeroDivisionError, OverflowError):
            raise ValueError(f"expected a share such as 5% or 0.05, got {text!r}") from None
        return cls(rate)

    def __str__(self) -> str:
        return f"{100 * self.rate:.6g}%"

    def of(self, many: int) -> int:
        """How many of `many` rows this is: at least one."""
        return max(1, round(self.rate * many))


def _project_l1(delta: Tensor, radii: Tensor) -> Tensor:
    """Duchi et al. (ICML 2008): soft-threshold every row so that its l1 norm is at most its radius."""
    flat = delta.flatten(1)
    ordered = flat.abs().sort(1, descending=True).values
    excess = ordered.cumsum(1) - radii.flatten(1).nan_to_num(posinf=1e30)
    count = torch.arange(1, flat.shape[1] + 1, device=flat.device)
    last = (ordered * count > excess).sum(1, keepdim=True).clamp_min(1)
    threshold = (excess.gather(1, last - 1) / last).clamp_min(0)
    return (flat.sign() * (flat.abs() - threshold).clamp_min(0)).view_as(delta)


def _largest(delta: Tensor, radii: Tensor) -> Tensor:
    """Which elements are among the largest of their row, as many as its radius, rounded down, allows."""
    rank = delta.flatten(1).abs().argsort(1, descending=True).argsort(1)
    return (rank < radii.flatten(1).floor()).view_as(delta)


@dataclass(frozen=True)
class Threat:
    """Who the adversary is. Two trials may be compared only if their threats are equal."""

    sees: str
    """What is revealed: weights, logits, scores, labels, or nothing (a surrogate only)."""
    changes: str
    """What is changed: input, training data, weights, nothing."""
    within: str
    """The limit, and the query budget where there is one: `linf:0.1`, `linf:0.1, 5000 queries`."""
    wants: str
    """The goal in a few words: `any wrong label`, `label 3`."""
    tags: tuple[str, ...] = ()
    """Catalogue tags, `scheme:id@version`."""

    def __post_init__(self) -> None:
        for tag in self.tags:
            tag_name(tag)

    def record(self) -> dict[str, object]:
        return {**asdict(self), "tags": list(self.tags)}


@cache
def catalogue(scheme: str) -> dict[str, str]:
    """The ids and names of one catalogue file of the package, with its `version` under the key `@`."""
    path = files("buckler") / "catalogues" / f"{scheme}.json"
    if not path.is_file():
        raise ValueError(f"unknown catalogue {scheme!r}: there is no catalogues/{scheme}.json")
    content = json.loads(path.read_text("utf8"))
    return {"@": content["version"], **content["entries"]}


def tag_name(tag: str) -> str:
    """The name of a tag such as `atlas:AML.T0043.000@5.6.0`; an id or a version not in its catalogue is an error."""
    scheme, _, rest = tag.partition(":")
    identity, _, version = rest.partition("@")
    entries = catalogue(scheme)
    if version != entries["@"]:
        raise ValueError(f"tag {tag!r}: the {scheme} catalogue is at {entries['@']!r}, not {version!r}")
    if identity not in entries:
        raise ValueError(f"tag {tag!r}: {identity!r} is not in the {scheme} catalogue")
    return entries[identity]


def pinned(docstring: str) -> tuple[str, ...]:
    """The tags of a method's docstring (its `Tags:` line), each with the version of its catalogue."""
    _, _, line = docstring.partition("Tags:")
    names = line.strip().rstrip(".").split(",") if line.strip() else []
    tags = tuple(f"{name.strip()}@{catalogue(name.strip().partition(':')[0])['@']}" for name in names)
    for tag in tags:
        tag_name(tag)
    return tags
