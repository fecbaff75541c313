"""Victims that are known: linear ones, whose answers say all, and subjects around them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from buckler.method import describe
from buckler.nets import LinearModel
from buckler.subject import Subject

SIDES, CLASSES = 6, 3


def victim(seed: int = 0, steep: float = 4.0, sides: int = SIDES, classes: int = CLASSES) -> LinearModel:
    weight = steep * torch.randn(classes, sides, generator=torch.Generator().manual_seed(seed))
    return LinearModel(weight, -weight.sum(1) / 2).eval()


def rows(many: int, seed: int = 1, sides: int = SIDES) -> Tensor:
    return torch.rand(many, sides, generator=torch.Generator().manual_seed(seed))


def net() -> nn.Module:
    return nn.Linear(SIDES, CLASSES)


def agreement(copy: nn.Module, model: nn.Module, many: int = 2000) -> float:
    x = rows(many, 99)
    with torch.no_grad():
        return float((copy(x).argmax(1) == model(x).argmax(1)).float().mean())


def subject(*, noise: float = 0.2, many: int = 400, seed: int = 0, build: Callable[[], nn.Module] = net) -> Subject:
    """A linear model and rows whose labels are what it says, but for a share that is wrong."""
    model, x = victim(seed), rows(many, seed + 10)
    y = model(x).argmax(1)
    wrong = torch.rand(many, generator=torch.Generator().manual_seed(seed)) < noise
    return Subject("linear", model, (x, torch.where(wrong, (y + 1) % CLASSES, y)), net=build)


def quick(method: Any) -> Any:
    """The method with training that a linear copy needs, where it has knobs for it."""
    wanted = {"epochs": 30, "batch": 16, "rate": 0.5} if "batch" in describe(method).knobs else {}
    return partial(method, **wanted)
