"""What holds for every trigger that is put into data, checked row by row."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import pytest
import torch
from torch import Tensor, nn

from buckler.data import Poisoned, Rows, digits
from buckler.nets import SmallCNN
from buckler.threat import Share
from buckler.train import fit, started

TEN = Share(0.1)


def pictures(many: int = 60, channels: int = 1, height: int = 8, width: int = 8, classes: int = 4) -> Rows:
    """Noise `(N, C, H, W)` in [0, 1] whose classes come in turn."""
    draws = torch.Generator().manual_seed(5)
    return torch.rand(many, channels, height, width, generator=draws), torch.arange(many) % classes


def in_bytes(data: Rows) -> Rows:
    return (data[0] * 255).round().to(torch.uint8), data[1]


def assert_rows_are_as_said(poisoned: Poisoned, data: Rows) -> None:
    """Poisoned rows carry the trigger and the wanted label, untouched rows are what they were; covers are skipped."""
    x, y = data
    assert poisoned.trigger is not None
    assert poisoned.wanted is not None
    assert poisoned.x.dtype == x.dtype
    assert poisoned.y.dtype == torch.int64
    assert torch.equal(poisoned.original, y)
    covers = torch.zeros_like(poisoned.rows) if poisoned.covers is None else poisoned.covers
    for row in range(len(y)):
        before, after = x[row], poisoned.x[row]
        if poisoned.poison[row]:
            floats = before.float() / 255 if x.dtype == torch.uint8 else before
            stamped = poisoned.trigger(floats[None])[0]
            if x.dtype == torch.uint8:
                assert ((stamped * 255).round() - after.float()).abs().max() <= 0.5, "as a file with 8 bits holds it"
            else:
                assert torch.allclose(stamped, after, atol=1e-6)
            assert not torch.equal(before, after), "the trigger shows"
            assert poisoned.y[row] == poisoned.wanted(y[row : row + 1])[0]
        else:
            assert poisoned.y[row] == y[row]
            assert bool(covers[row]) or torch.equal(before, after)


def check_a_trigger(method: Callable[..., Poisoned], **knobs: object) -> None:
    """What every attack with a trigger keeps to: rows alone, its seed, and data that it cannot use."""
    x, y = pictures()
    knobs = {"share": TEN, **knobs}
    trigger = method((x, y), **knobs).trigger
    assert trigger is not None
    assert_a_row_does_not_know_its_batch(trigger, x[:5].double())
    assert_drawn_by_seed_alone(method, (x, y), **knobs)
    with pytest.raises(ValueError, match="at least two classes"):
        method((x, torch.zeros_like(y)), **knobs)
    with pytest.raises(ValueError, match="expected images"):
        method((x.flatten(1), y), **knobs)


def check_a_network_learns(poisoned: Poisoned, *, obeys: float = 0.9, right: float = 0.9, clean: float = 0.2) -> None:
    """A network that saw `poisoned` obeys the trigger and is right without; one that never saw it does not obey."""
    model = trained(poisoned.seen)
    assert success(model, poisoned) > obeys
    assert accuracy(model) > right
    assert success(unpoisoned(), poisoned) < clean


def assert_a_row_does_not_know_its_batch(trigger: Callable[[Tensor], Tensor], x: Tensor) -> None:
    before = x.clone()
    together = trigger(x)
    assert torch.equal(x, before), "what comes in is not changed"
    assert torch.equal(trigger(x), together), "the trigger is always the same"
    assert together.shape == x.shape
    assert together.dtype == x.dtype
    assert together.amin() >= 0
    assert together.amax() <= 1
    for row in range(len(x)):
        assert torch.allclose(trigger(x[row : row + 1])[0], together[row], atol=1e-6)


def assert_drawn_by_seed_alone(method: Callable[..., Poisoned], data: Rows, **knobs: object) -> None:
    before = data[0].clone(), data[1].clone()
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = method(data, seed=3, **knobs)
    assert torch.equal(torch.get_rng_state(), state), "the global random state is left alone"
    torch.manual_seed(2)
    again, other = method(data, seed=3, **knobs), method(data, seed=4, **knobs)
    assert torch.equal(first.x, again.x)
    assert torch.equal(first.y, again.y)
    assert torch.equal(first.rows, again.rows)
    assert not torch.equal(first.rows, other.rows)
    assert torch.equal(data[0], before[0])
    assert torch.equal(data[1], before[1])


def trained(data: Rows) -> nn.Module:
    """A small network trained on digits, or on what an adversary made of them."""
    model = started(lambda: SmallCNN(width=8), 0)
    return fit(model, data, epochs=12, batch=64, rate=0.05)


@cache
def unpoisoned() -> nn.Module:
    """The same network trained on digits as they are."""
    return trained(digits(train=True))


def success(model: nn.Module, poisoned: Poisoned) -> float:
    """How often test digits with the trigger are answered as wanted, out of those whose true label is another."""
    assert poisoned.trigger is not None
    assert poisoned.wanted is not None
    x, y = digits(train=False)
    wanted = poisoned.wanted(y)
    with torch.no_grad():
        return float((model(poisoned.trigger(x)).argmax(1) == wanted)[wanted != y].float().mean())


def accuracy(model: nn.Module) -> float:
    x, y = digits(train=False)
    with torch.no_grad():
        return float((model(x).argmax(1) == y).float().mean())
