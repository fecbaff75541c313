"""The arrows: what shapes a method may have.

Nothing derives from these. A method is any function whose first parameter says what it holds and whose return
annotation, one of the names below, says what kind it is; `catalog.card` reads both without importing the method.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import NamedTuple, Protocol, TypeAlias, runtime_checkable

from torch import Tensor, nn

from buckler.data import Poisoned, Rows
from buckler.target import Oracle
from buckler.threat import Ball, Norm, Share

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

Encoder: TypeAlias = nn.Module
"""A model that was pre-trained without labels: it turns inputs into features `(B, D)`."""

Membership: TypeAlias = Tensor
"""How probably a model learnt from each row: a score per row, `(B,)`, higher for a member."""

Repaired: TypeAlias = nn.Module
"""A copy of the given model from which a backdoor was to be removed."""

Guessed: TypeAlias = dict[str, Tensor]
"""What was guessed, by name: a score for every possible value, per row `(B, V)`, or of the whole `(V,)`."""

ABSTAIN = -1


class Certificate(NamedTuple):
    """`label` `(B,)` (`ABSTAIN` where nothing is proven) and the `radius` `(B,)`, in `norm`, within which it cannot
    change."""

    label: Tensor
    radius: Tensor
    norm: Norm = "l2"


class Suspicion(NamedTuple):
    """How suspicious every training row is: `score` `(N,)`, higher is worse, and the rows that are `flagged` `(N,)`."""

    score: Tensor
    flagged: Tensor


class Anomaly(NamedTuple):
    """How anomalous every class of a model is: `score` `(K,)`, and the classes `flagged` `(K,)` as backdoored.

    `mask` `(K, 1, H, W)` and `pattern` `(K, C, H, W)` are the triggers recovered, where there are any.
    """

    score: Tensor
    flagged: Tensor
    mask: Tensor | None = None
    pattern: Tensor | None = None


class Cultivated(NamedTuple):
    """A model trained from data that cannot be trusted, and what was learnt of the rows.

    `suspicion` is what the method thought of every row, if it did; `dynamics` are named records `(epochs, N)` of what
    training saw of every row.
    """

    model: nn.Module
    suspicion: Suspicion | None = None
    dynamics: Mapping[str, Tensor] = MappingProxyType({})


class Implanted(NamedTuple):
    """A model with a backdoor put in by whoever trained it: the `trigger` changes inputs, `wanted` maps true labels."""

    model: nn.Module
    trigger: Callable[[Tensor], Tensor]
    wanted: Callable[[Tensor], Tensor]


class Protected(NamedTuple):
    """A model trained so that little of any one row shows; `epsilon` and `delta` are what is promised, if anything is.

    The promise is of differential privacy for one row added or removed.
    """

    model: nn.Module
    epsilon: float | None = None
    delta: float | None = None


class Forgotten(NamedTuple):
    """A model `before` and `after` rows were forgotten; `redone` is the work of that, as a share of training anew."""

    before: nn.Module
    after: nn.Module
    redone: float


class Audited(NamedTuple):
    """What canaries showed of a training: `score` `(m,)`, higher for one that seems learnt from, and which ones were
    `held` `(m,)`, by fair coins. `epsilon` and `delta` are what the training promised, if anything."""

    score: Tensor
    held: Tensor
    epsilon: float | None = None
    delta: float | None = None


class Reconstructed(NamedTuple):
    """Inputs rebuilt from what a model revealed: `x` `(B, ...)` in [0, 1], with labels `y` `(B,)` if they were told."""

    x: Tensor
    y: Tensor | None = None


class Claim(NamedTuple):
    """How improbable a suspect's answers are for a model that has nothing to do with the owner's: `p`, uniform in
    [0, 1] or above it for an independent model, after so many `queries`."""

    p: float
    queries: int


class Owned(NamedTuple):
    """What an owner keeps to `claim` a suspect as theirs; with it the marked `model`, or marked training rows `data`,
    where the mark was put into the one or the other."""

    claim: Callable[[nn.Module | Oracle], Claim]
    model: nn.Module | None = None
    data: Rows | None = None


class Watched(NamedTuple):
    """What a client's questions look like, question by question: whether the client is `flagged` `(N,)` by then, and a
    `score` `(N,)`, higher for what is more suspicious, of which the flags are a threshold."""

    flagged: Tensor
    score: Tensor


class Bagged(NamedTuple):
    """`encoders`, each pre-trained on rows that no other saw, and the `part` `(N,)` that each row went to: which of
    the encoders learnt from it."""

    encoders: tuple[nn.Module, ...]
    part: Tensor


class Poison(Protocol):
    def __call__(self, data: Rows, /, *, share: Share) -> Poisoned: ...


class Implant(Protocol):
    def __call__(self, model: nn.Module, data: Rows, /) -> Implanted: ...


class Sift(Protocol):
    def __call__(self, model: nn.Module, data: Rows, /) -> Suspicion: ...


class Inspect(Protocol):
    def __call__(self, model: nn.Module, clean: Rows, /) -> Anomaly: ...


class Repair(Protocol):
    def __call__(self, model: nn.Module, clean: Rows, /) -> Repaired: ...


class Cultivate(Protocol):
    def __call__(self, data: Rows, /, *, net: Callable[[], nn.Module]) -> Cultivated: ...


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


class Infer(Protocol):
    def __call__(self, target: nn.Module | Oracle, x: Tensor, y: Tensor, /) -> Membership: ...


class Extract(Protocol):
    def __call__(self, oracle: Oracle, pool: Tensor, /) -> Copy: ...


class Watch(Protocol):
    def __call__(self, queries: Rows, /) -> Watched: ...


class Protect(Protocol):
    def __call__(self, data: Rows, /, *, net: Callable[[], nn.Module]) -> Protected: ...


class Unlearn(Protocol):
    def __call__(self, data: Rows, forget: Tensor, /, *, net: Callable[[], nn.Module]) -> Forgotten: ...


class Pretrain(Protocol):
    def __call__(self, data: Rows, /, *, net: Callable[[], nn.Module]) -> Encoder: ...


class Bag(Protocol):
    def __call__(self, data: Rows, /, *, net: Callable[[], nn.Module]) -> Bagged: ...


class Reconstruct(Protocol):
    def __call__(self, model: nn.Module, observed: Tensor, /) -> Reconstructed: ...


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
    "Poisoned": "poison",
    "Implanted": "implant",
    "Suspicion": "sift",
    "Anomaly": "inspect",
    "Repaired": "repair",
    "Cultivated": "cultivate",
    "Membership": "infer",
    "Guessed": "guess",
    "Protected": "protect",
    "Forgotten": "unlearn",
    "Audited": "audit",
    "Reconstructed": "reconstruct",
    "Owned": "own",
    "Watched": "watch",
    "Encoder": "pretrain",
    "Bagged": "bag",
}
