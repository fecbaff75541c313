"""A small network with a backdoor, trained on digits, and what every repair and every implant must keep to."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor, nn

from buckler.data import Poisoned, Rows, digits
from buckler.nets import ResNet, SmallCNN
from buckler.poisoning.badnets import badnets
from buckler.threat import Share
from buckler.train import fit, started

TARGET = 0


@cache
def clean_rows() -> Rows:
    """What a defender holds: 300 rows."""
    x, y = digits(train=True)
    return x[:300], y[:300]


@cache
def poison() -> Poisoned:
    return badnets(digits(train=True), share=Share(0.1), target=TARGET)


@cache
def backdoored(norm: bool = True) -> nn.Module:
    """With batch norm or without."""
    return _trained(poison().seen, norm)


@cache
def honest(norm: bool = True) -> nn.Module:
    return _trained(digits(train=True), norm)


def _trained(rows: Rows, norm: bool) -> nn.Module:
    model = started((lambda: ResNet(width=8)) if norm else (lambda: SmallCNN(width=8)), 0)
    return fit(model, rows, epochs=10, batch=64, rate=0.1 if norm else 0.05)


def success(model: nn.Module, trigger: Callable[[Tensor], Tensor] | None) -> float:
    """How often test digits of other classes that carry the trigger are answered with the target."""
    assert trigger is not None
    x, y = digits(train=False)
    return float((answers(model, trigger(x[y != TARGET])) == TARGET).float().mean())


def accuracy(model: nn.Module) -> float:
    x, y = digits(train=False)
    return float((answers(model, x) == y).float().mean())


def answers(model: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        return model(x).argmax(1)


def assert_only_a_copy_changes(method: Callable[[nn.Module], nn.Module], model: nn.Module) -> None:
    """The given model, its flags and the random state are left alone, names stay, and a seed decides."""
    before = copy.deepcopy(model.state_dict())
    torch.manual_seed(7)
    state = torch.get_rng_state()
    first, again = method(model), method(model)
    assert torch.equal(torch.get_rng_state(), state)
    assert not model.training
    assert not first.training
    assert all(parameter.requires_grad for parameter in (*model.parameters(), *first.parameters()))
    assert type(first) is type(model)
    assert list(first.state_dict()) == list(before)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name
        assert torch.equal(first.state_dict()[name], again.state_dict()[name]), name
    assert any(not torch.equal(first.state_dict()[name], before[name]) for name in before), "something was changed"
