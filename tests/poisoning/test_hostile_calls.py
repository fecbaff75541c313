"""Every method of the area under calls that cannot work: one sentence, never an error of something else's making.

The methods are found, not listed, and so are the knobs: a new one is held to the same.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterator
from functools import partial
from importlib.util import find_spec
from typing import Any

import pytest
import torch
from problems import stripes
from torch import Tensor, nn

from buckler.catalog import cards, find
from buckler.data import Poisoned, Rows
from buckler.method import describe
from buckler.nets import ResNet
from buckler.threat import Share

LITTLE: dict[str, float] = {
    **dict.fromkeys(("epochs", "mask_epochs", "unlearn_epochs", "recover_epochs", "teacher", "passes"), 1),
    **dict.fromkeys(("steps", "rounds", "train_steps", "noise_steps", "restarts", "iterations", "draws", "grow"), 1),
    **dict.fromkeys(("seeds", "folds", "width"), 2),
    "overlays": 4,
}
"""What is done a few times only."""
MORE: dict[str, dict[str, object]] = {"poisoning/label_flip": {"first": "easiest"}}
"""What makes a method use its network."""
EPOCHS = ("epochs", "mask_epochs", "unlearn_epochs", "recover_epochs", "teacher")
RATES = ("rate", "unlearn", "recover")
BLIND = "poisoning/clp"
"""Does not look at the rows that it is given."""
PATHS = [
    pytest.param(card.path, marks=pytest.mark.skipif(find_spec("cleanlab") is None, reason="an optional extra"))
    if card.path.endswith("label_errors")
    else card.path
    for card in cards("poisoning")
]
net = partial(ResNet, width=2, blocks=(1,), classes=3)


class Paired(nn.Module):
    """A network that answers with two things at once."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = net()

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.inner(x), x


def knobs_of(path: str) -> dict[str, Any]:
    """What a quick call of the method is given, and its other defaults."""
    found: dict[str, Any] = {}
    for name, parameter in inspect.signature(find(path)).parameters.items():
        if parameter.kind is not parameter.KEYWORD_ONLY:
            continue
        default = parameter.default
        if name in LITTLE:
            default = tuple(LITTLE[name] for _ in default) if isinstance(default, tuple) else LITTLE[name]
        found[name] = default
    x, _ = stripes(2, seed=3)
    needed = {"share": Share(0.05), "net": net, "prey": (x, torch.tensor([0, 0])), "seed": 1}
    return {**found, **{name: value for name, value in needed.items() if name in found}, **MORE.get(path, {})}


def call(path: str, data: Rows, **knobs: object) -> object:
    described = describe(find(path))
    torch.manual_seed(0)
    models = (net(),) if described.holds == "model" else ()
    return find(path)(*models, data, **{**knobs_of(path), **knobs})


def tensors(result: object) -> Iterator[Tensor]:
    """All that a method answers with."""
    if isinstance(result, Tensor):
        yield result
    elif isinstance(result, nn.Module):
        yield from result.state_dict().values()
    elif isinstance(result, Poisoned):
        yield from (result.x, result.y, result.rows)
    elif isinstance(result, tuple):
        for part in result:
            yield from tensors(part)


def refused(path: str, data: Rows, what: str, **knobs: object) -> str | None:
    """None where the call was refused with a sentence, else what happened."""
    try:
        call(path, data, **knobs)
    except (ValueError, TypeError) as error:
        return None if str(error).startswith("expected ") else f"{what}: {error!r}"
    except Exception as error:  # which is what is looked for
        return f"{what}: {error!r}"
    return f"{what}: was taken"


def each(value: object, bad: float) -> list[object]:
    """`bad` in the place of `value`, or of every one of its parts by turns."""
    if not isinstance(value, tuple):
        return [bad]
    return [(*value[:place], bad, *value[place + 1 :]) for place in range(len(value))]


def bad_knobs(path: str) -> Iterator[tuple[str, object]]:
    knobs = knobs_of(path)
    yield from (("share", bad) for bad in (0.05, None, "5%") if "share" in knobs)
    for names, wrong in ((EPOCHS, (math.inf, -1)), (RATES, (-0.1,)), (("batch",), (0,))):
        for name in names:
            if name in knobs:
                yield from ((name, value) for bad in wrong for value in each(knobs[name], bad))
    if "net" in knobs:
        needed = inspect.signature(find(path)).parameters["net"].default is not None
        nets: list[object] = [net(), lambda: None, Paired, 3, *([None] if needed else [])]
        yield from (("net", bad) for bad in nets)


@pytest.mark.parametrize("path", PATHS)
def test_rows_as_arrays_are_the_same_rows(path: str) -> None:
    """It also shows that these calls work but for what the other tests make of them."""
    x, y = stripes(60)
    held, labels = x.numpy(), y.numpy()
    held.flags.writeable = False
    one, other = list(tensors(call(path, (x, y)))), list(tensors(call(path, (held, labels))))  # pyright: ignore
    assert one
    assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("path", PATHS)
def test_knobs_that_cannot_be_are_refused(path: str) -> None:
    data = stripes(60)
    found = [refused(path, data, f"{name}={value}", **{name: value}) for name, value in bad_knobs(path)]
    assert [what for what in found if what] == []


@pytest.mark.parametrize("path", PATHS)
def test_rows_that_cannot_be_are_refused(path: str) -> None:
    x, y = stripes(60)
    described = describe(find(path))
    far, beyond = y.clone(), y.clone()
    beyond[7], far[7] = 3, 10**12
    rows: dict[str, tuple[object, ...]] = {
        "one class": (x, y * 0),
        "three parts": (x, y, y),
        "fewer labels": (x, y[:9]),
    }
    taught = "net" in described.knobs or described.kind in ("repair", "inspect", "implant")
    unread = {"a label beyond the classes": (x, beyond), "a label far beyond": (x, far)}
    if path == BLIND:
        unread, rows = {**unread, **rows}, {}
    elif taught:
        unread, rows = {}, {**unread, **rows}
    found = [refused(path, data, what) for what, data in rows.items()]  # pyright: ignore
    assert [what for what in found if what] == []
    took = [refused(path, data, what) for what, data in unread.items()]  # pyright: ignore
    assert [what for what in took if what and not what.endswith("was taken")] == []
