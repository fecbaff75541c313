"""The arrows: what shapes a method may have.

Nothing derives from these. A method is any function whose first parameter says what it holds and whose return
annotation, one of the names below, says what kind it is; `catalog.card` reads both without importing the method.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol, TypeAlias, runtime_checkable

from torch import Tensor, nn

from buckler.target import Oracle
from buckler.threat import Ball, Norm

Perturbed: TypeAlias = Tensor
"""Inputs `(B, ...)` in [0, 1], one for every row; a row for which nothing was found may be anything legal."""
Losses: TypeAlias = Tensor
"""One loss per row, `(B,)`, differentiable in the parameters."""
Readings: TypeAlias = dict[str, Tensor]
"""Named measurements, one number per row, each `(B,)`."""
Defended: TypeAlias = nn.Module
"""A model that answers like the one it guards; if it hides gradients it is an `Adaptive`."""
Copy: TypeAlias = nn.Module
"""A model made from another's answers."""

ABSTAIN = -1


class Certificate(NamedTuple):
    """`label` `(B,)` (`ABSTAIN` where nothing is proven) and the `radius` `(B,)`, in `norm`, within which it cannot
    change."""

    label: Tensor
    radius: Tensor
    norm: Norm = "l2"


class Evade(Protocol):
    def __call__(self, target: nn.Module | Oracle, x: Tensor, y: Tensor, /, *, ball: Ball) -> Perturbed: ...


class Certify(Protocol):
    def __call__(self, model: nn.Module, x: Tensor, /) -> Certificate: ...


class Loss(Protocol):
    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, /, *, ball: Ball) -> Losses: ...


class Guard(Protocol):
    def __call__(self, model: nn.Module, /) -> Defended: ...


class Probe(Protocol):
    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, /) -> Readings: ...


class Extract(Protocol):
    def __call__(self, oracle: Oracle, pool: Tensor, /) -> Copy: ...


@runtime_checkable
class Adaptive(Protocol):
    """A defended model that declares what an adaptive attack goes through.

    `surrogate()` is differentiable and follows the defended model as closely as it can: a straight-through estimate
    where a guard quantises (BPDA), an average over draws where it randomises (EOT). The evaluator attacks the
    surrogate and judges on the defended model.
    """

    def surrogate(self) -> nn.Module: ...


KINDS = {
    "Perturbed": "evade",
    "Certificate": "certify",
    "Losses": "loss",
    "Defended": "guard",
    "Readings": "probe",
    "Copy": "extract",
}
