"""Guards on features that the adversaries of inputs are tried against, and what a guard costs who uses the features."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import torch
from torch import Tensor, nn

from buckler import stats
from buckler.catalog import find
from buckler.embedding import embedded, probe
from buckler.encoders._pretrained import settled
from buckler.encoders._scene import Scene, Task, body, tasks
from buckler.encoders._setting import Setting
from buckler.stats import Estimate
from buckler.target import Oracle
from buckler.trial import Trial

GUARDS: Mapping[str, str] = MappingProxyType({"noisy": "encoders/noisy_features", "top": "encoders/top_features"})
SAID: Mapping[str, str] = MappingProxyType(
    {"noisy": "noise of half a feature's size", "top": "only the largest tenth of the features shown"}
)


def guards(encoder: nn.Module | Oracle) -> dict[str, nn.Module]:
    """`encoder` behind each of `GUARDS`, at their defaults; none of what can only be asked."""
    return {} if isinstance(encoder, Oracle) else {name: find(path)(encoder) for name, path in GUARDS.items()}


def answering(encoder: nn.Module | Oracle) -> Oracle:
    """A door to the features alone."""
    return encoder.narrowed("features") if isinstance(encoder, Oracle) else Oracle(encoder, "features")


def fresh(setting: Setting, seen: Scene) -> nn.Module | None:
    """The encoder untrained, its batch norms settled; None where nobody knows how it is built."""
    return None if body(setting.subject) is None else settled(setting, seen.spare[0])


def prices(setting: Setting, seen: Scene, guarded: Mapping[str, nn.Module]) -> dict[str, Tensor]:
    """Which test rows a linear probe gets right, `correct`, and through each guard, with the change, `NAME_price`."""
    task = tasks(setting, seen)[0]
    found = {"correct": _right(setting, seen.encoder, task)}
    for name, guard in guarded.items():
        found[f"{name}_correct"] = _right(setting, guard, task)
        found[f"{name}_price"] = found[f"{name}_correct"].to(torch.int8) - found["correct"].to(torch.int8)
    return found


def priced(evidence: Mapping[str, Tensor]) -> dict[str, Estimate]:
    """The estimates of what `prices` found."""
    made = {name: stats.share(evidence[name], name) for name in evidence if name.endswith("correct")}
    return made | {n: stats.difference(evidence[n], n) for n in evidence if n.endswith("_price")}


def best(trial: Trial, effect: str) -> str:
    """The guard that leaves least of an effect whose estimates are called `GUARD_effect`; empty if none was tried."""
    tried = [name for name in GUARDS if f"{name}_{effect}" in trial.estimates]
    return min(tried, key=lambda name: trial.estimates[f"{name}_{effect}"].value, default="")


def _right(setting: Setting, encoder: nn.Module | Oracle, task: Task) -> Tensor:
    known, asked = (embedded(encoder, rows[0]) for rows in (task.train, task.test))
    return probe(known, task.train[1], classes=task.classes, seed=setting.seed)(asked).argmax(1) == task.test[1]
