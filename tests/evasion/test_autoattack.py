"""AutoAttack: its published budgets, its judge, its forms, and the reference implementation."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from buckler.evasion.autoattack import _attacks, autoattack
from buckler.nets import LinearModel, SmallCNN
from buckler.threat import Ball


def fooled(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    with torch.no_grad():
        return model(x).argmax(1) != y


def test_budgets_are_the_published_ones() -> None:
    named = [(method.func.__name__, method.keywords) for method in _attacks("standard", "linf")]
    assert named == [
        ("apgd", {"objective": "ce", "steps": 100, "restarts": 1}),
        ("apgd", {"objective": "dlr", "steps": 100, "targets": 9}),
        ("fab", {"steps": 100, "targets": 9}),
        ("square", {"queries": 5000, "rescale": False, "ahead": 16}),
    ]
    sparse = [method.keywords for method in _attacks("standard", "l1")]
    assert (sparse[0]["restarts"], sparse[1]["targets"], sparse[2]["targets"]) == (5, 5, 9)
    assert [m.func.__name__ for m in _attacks("plus", "linf")] == ["apgd", "apgd", "fab", "square", "apgd", "fab"]
    assert [m.keywords["draws"] for m in _attacks("rand", "linf")] == [20, 20]


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_on_a_linear_model_the_verdict_is_the_closed_form(norm) -> None:
    torch.manual_seed(0)
    weight = torch.randn(3, 20)
    model = LinearModel(weight, -0.5 * weight.sum(1))
    x = torch.rand(10, 20) * 0.1 + 0.45
    y = model(x).argmax(1)
    radius = model.distances(x, y, norm) * torch.tensor([0.8, 1.2]).repeat(5)
    found = autoattack(model, x, y, ball=Ball(norm, radius), steps=20, queries=60)
    assert Ball(norm, radius).contains(x, found).all()
    assert fooled(model, found, y).tolist() == [False, True] * 5


def test_the_model_is_as_it_was_and_l0_is_refused() -> None:
    model = SmallCNN(width=4).train()
    x, y = torch.rand(2, 1, 8, 8), torch.tensor([0, 1])
    autoattack(model, x, y, ball=Ball("linf", 1.0), steps=3, queries=5)
    assert model.training
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
    with pytest.raises(ValueError, match="expected a ball in linf, l2 or l1"):
        autoattack(model, x, y, ball=Ball("l0", 3))


@pytest.mark.parametrize("precision", ["auto", "float32"])
def test_never_above_the_reference(precision) -> None:
    reference = pytest.importorskip("pyautoattack")
    torch.manual_seed(3)
    model = SmallCNN(width=6).eval().requires_grad_(False)
    x = torch.rand(16, 1, 8, 8)
    y = model(x).argmax(1)
    radius = 0.16
    peer = reference.AutoAttack(model, norm="Linf", eps=radius, seed=0, version="standard")
    for part in (peer.apgd, peer.apgd_targeted, peer.fab):
        part.n_iter = 20
    peer.square.n_queries = 60
    theirs = fooled(model, peer.run_standard_evaluation(x, y)[0], y)
    found = autoattack(model, x, y, ball=Ball("linf", radius), steps=20, queries=60, precision=precision)
    ours = fooled(model, found, y)
    assert 0 < theirs.sum() < len(x), "the radius must separate rows, or this compares nothing"
    assert ours.sum() >= theirs.sum()
