"""What one evaluation works with, and what it hands out: rows, networks, models, and knobs that were left open.

Whatever is handed out is a copy, or is counted by the meter: a method and a user's own training may do with it as they
please. What comes back from an attack is compared with the rows that it was given.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from buckler.contract import check_contract, fatal
from buckler.data import Poisoned, Rows, as_tensors
from buckler.imported import usable
from buckler.method import Described, Method, describe, plain
from buckler.subject import Subject
from buckler.target import Meter
from buckler.threat import Share
from buckler.train import cross_entropy, fit, started
from buckler.trial import fingerprint_tensors

PREY, TRIED = 8, 16
"""How many test rows an attack hunts, and how many training rows a model is tried on before it is measured."""


@dataclass(frozen=True)
class Setting:
    """What one evaluation was asked for, and the rows that it uses."""

    method: Method
    described: Described
    subject: Subject
    meter: Meter
    share: Share | None
    attack: Method | None
    epochs: float
    seed: int
    test: Rows
    train: Rows | None
    places: Tensor
    """Where the training rows stand in the subject's data."""
    clean: Rows | None
    """Test rows that are not measured on; None where no method asks for them."""
    device: torch.device
    tick: Callable[[float, int], None] | None

    def told(self, done: float) -> None:
        """Say how much of the evaluation is done."""
        if self.tick is not None:
            self.tick(done, self.meter.forwards)


def called(setting: Setting, *given: object, done: float = 0.0) -> Any:
    """What the method makes of what it is given, on a clock of its own; `done` of the evaluation lies behind it."""
    meter = setting.meter
    meter.tick = lambda _: setting.told(done)
    began = time.perf_counter()
    made = setting.method(*given, **_supplied(setting.method, setting.described, setting))
    meter.method_seconds += time.perf_counter() - began
    meter.tick = None
    return made


def attacked(setting: Setting) -> Poisoned | None:
    """The training data after the attack, which may be the method itself; None where it is taken as it is.

    A `ValueError` if the attack did not keep to what it says of it.
    """
    if setting.described.kind == "poison":
        made, path = cast(Poisoned, called(setting, seen(setting))), setting.described.path
    elif setting.attack is not None:
        described = describe(setting.attack)
        made, path = setting.attack(seen(setting), **_supplied(setting.attack, described, setting)), described.path
    else:
        return None
    _honest(made, seen(setting), path)
    return made


def _honest(made: Poisoned, clean: Rows, path: str) -> None:
    x, y = clean
    pairs = (("x", made.x, x), ("y", made.y, y), ("original", made.original, y), ("rows", made.rows, y < 0))
    for name, got, expected in (*pairs, ("covers", y < 0 if made.covers is None else made.covers, y < 0)):
        if got.shape != expected.shape or got.dtype != expected.dtype:
            says = [f"{tuple(tensor.shape)} of {tensor.dtype}" for tensor in (expected, got)]
            raise ValueError(f"{path}: expected {name} {says[0]}, got {says[1]}")
    if not torch.equal(made.original, y):
        raise ValueError(f"{path}: expected as original the labels that it was given, got others")
    secret = ((made.x != x).flatten(1).any(1) | (made.y != y)) & ~made.rows
    if bool(secret.any()):
        raise ValueError(
            f"{path}: expected changes only in the {int(made.rows.sum())} rows that it says it touched, "
            f"got {int(secret.sum())} others that are changed"
        )
    if made.covers is not None and bool((made.covers & (~made.rows | (made.y != y))).any()):
        raise ValueError(f"{path}: expected covers that were touched and keep their labels, got others")


def left_open(method: Method, described: Described) -> set[str]:
    """The knobs that an evaluation fills in: those that the method asks for and is not configured with.

    Clean rows are a threat model of their own to training that withstands poison, which therefore has none of them.
    """
    configured = plain(method)
    named = set(cast("dict[str, object]", configured)) if isinstance(configured, dict) else set[str]()
    filled = {"seed", "net", "prey"} if described.kind == "cultivate" else {"seed", "net", "prey", "clean"}
    return filled & set(described.knobs) - named


def _supplied(method: Method, described: Described, setting: Setting) -> dict[str, Any]:
    knobs, more = left_open(method, described), dict[str, Any]()
    if described.kind == "poison":
        more["share"] = setting.share
    if "seed" in knobs:
        more["seed"] = setting.seed
    if "net" in knobs and setting.subject.net is not None:
        more["net"] = _counted(setting, _own(setting, setting.subject.net))
    if "clean" in knobs:
        more["clean"] = setting.clean
    if "prey" in knobs:
        more["prey"] = _prey(setting, int(str(described.params.get("target", 0))))
    return more


def _own(setting: Setting, net: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
    """`net`, which was looked at: it gives a new network for every call, and one of which something can be measured."""
    first, again = started(net, setting.seed), started(net, setting.seed)
    if first is again:
        raise ValueError("net: expected a new network from every call, got one twice: build it inside the function")
    _tried(setting, first, "net")
    return net


def _counted(setting: Setting, net: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
    def made() -> nn.Module:
        model = usable(net(), "net").to(setting.device)
        setting.meter.watch(model)
        return model

    return made


def _prey(setting: Setting, target: int) -> Rows:
    """Test rows of other classes, and the label that the adversary wants for them."""
    x, y = setting.test
    able = (y != target).nonzero().squeeze(1)[:PREY]
    return x[able], torch.full_like(y[able], target)


def trained(setting: Setting, data: Rows, *, begin: float, end: float, before: tuple[nn.Module, ...] = ()) -> nn.Module:
    """What the subject's own training makes of `data`: its recipe, or its network in the one loop.

    Of the evaluation `begin` is done before it, and `end` after it. A `ValueError` if nothing can be measured of what
    comes out, or if the subject's model, or one trained `before`, was trained on.
    """
    subject, meter = setting.subject, setting.meter
    if subject.recipe is not None:
        there = (subject.model,) if isinstance(subject.model, nn.Module) else ()
        with _left_alone(*there, *before):
            made = cast(object, subject.recipe(data))
        if not isinstance(made, nn.Module):
            raise ValueError(f"recipe: expected a function that returns a trained nn.Module, got {type(made).__name__}")
        model = _tried(setting, made, "recipe").eval()
    elif subject.net is not None:
        model = usable(started(_own(setting, subject.net), setting.seed), "net").to(setting.device)
        meter.watch(model)

        def tick(done: float, _loss: float) -> None:
            setting.told(begin + (end - begin) * done)

        fit(model, data, loss=cross_entropy, epochs=setting.epochs, seed=setting.seed, tick=tick)
    else:
        raise TypeError("expected a recipe or a net")
    meter.watch(model)
    setting.told(end)
    return model


@contextmanager
def _left_alone(*models: nn.Module) -> Generator[None, None, None]:
    """A `ValueError` if the weights of `models` change inside the block; they are then set back."""
    kept = [copy.deepcopy(model.state_dict()) for model in models]
    yield
    shared = False
    for model, weights in zip(models, kept, strict=True):
        if fingerprint_tensors(model.state_dict()) != fingerprint_tensors(weights):
            model.load_state_dict(weights)
            shared = True
    if shared:
        raise ValueError(
            "recipe: expected a new model from every call, got one that shares weights with an earlier one: "
            "build the network inside the function"
        )


def _tried(setting: Setting, made: nn.Module, what: str) -> nn.Module:
    """`made` on the device, as it can be measured; a `ValueError` unless it gives every class a finite number."""
    if setting.train is None:
        raise TypeError("expected training data")
    model = usable(made, what).to(setting.device)
    y = setting.train[1]
    x, labels = as_tensors(setting.train, [*range(min(TRIED, len(y))), int(y.argmax())])
    with torch.random.fork_rng():
        checks = check_contract(model, x.to(setting.device), labels.to(setting.device))
    for check in checks:
        if fatal(check) and check.name != "scale":  # what it knows is measured later
            many = 1 + max(int(y.max()), int(setting.test[1].max()))
            raise ValueError(f"{what}: expected a model with {many} finite outputs per row. {check.says}")
    return model


def seen(setting: Setting, touched: Poisoned | None = None) -> Rows:
    """A copy of the training rows: as they were touched, else as they are."""
    if setting.train is None:
        raise TypeError("expected training data")
    x, y = setting.train if touched is None else touched.seen
    return x.clone(), y.clone()
