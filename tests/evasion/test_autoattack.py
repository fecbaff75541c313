"""AutoAttack: its published budgets, its judge, its forms, and the reference implementation."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import Tensor, nn

from buckler.evasion.autoattack import _Confirmed, _judged, attacks, autoattack
from buckler.kinds import Perturbed
from buckler.nets import LinearModel, SmallCNN
from buckler.target import inference_form
from buckler.threat import Ball


def fooled(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    with torch.no_grad():
        return model(x).argmax(1) != y


def test_budgets_are_the_published_ones() -> None:
    named = [(method.func.__name__, method.keywords) for method in attacks("standard", "linf")]
    assert named == [
        ("apgd", {"objective": "ce", "steps": 100, "restarts": 1}),
        ("apgd", {"objective": "dlr", "steps": 100, "targets": 9}),
        ("fab", {"steps": 100, "targets": 9}),
        ("square", {"queries": 5000, "rescale": False}),
    ]
    sparse = [method.keywords for method in attacks("standard", "l1")]
    assert (sparse[0]["restarts"], sparse[1]["targets"], sparse[2]["targets"]) == (5, 5, 9)
    assert [m.func.__name__ for m in attacks("plus", "linf")] == ["apgd", "apgd", "fab", "square", "apgd", "fab"]
    assert [m.keywords["draws"] for m in attacks("rand", "linf")] == [20, 20]


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


def shy(
    model: nn.Module, x: Tensor, y: Tensor, *, ball: Ball, honest: nn.Module, asked: list[nn.Module], seed: int = 0
) -> Perturbed:
    """Moves only what the honest model is behind."""
    asked.append(model)
    return torch.stack([x[:, 0] - 0.29, x[:, 1]], 1) if model is honest else x


def test_a_claim_that_fails_on_the_model_is_taken_up_again_in_the_exact_form() -> None:
    """The fast form calls every input wrong; only the exact form can tell where to go."""
    model = LinearModel(torch.tensor([[1.0, 0.0], [-1.0, 0.0]]), torch.tensor([-0.4, 0.4]))
    fast = LinearModel(torch.tensor([[1.0, 0.0], [-1.0, 0.0]]), torch.tensor([-9.0, 9.0]))
    x, y, ball = torch.tensor([[0.6, 0.5], [0.9, 0.5]]), torch.tensor([0, 0]), Ball("linf", 0.3)
    asked: list[nn.Module] = []

    method = partial(shy, honest=model, asked=asked)
    found = _judged(model, x, y, ball=ball, method=method, fast=fast, exact=model)
    assert asked == [fast, model]
    assert fooled(model, found, y).tolist() == [True, False]


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


def test_the_fast_form_costs_no_row_here() -> None:
    torch.manual_seed(4)
    model = SmallCNN(width=6).eval().requires_grad_(False)
    x = torch.rand(16, 1, 8, 8)
    y = model(x).argmax(1)
    method = attacks("standard", "linf")[0]
    exact, fast = inference_form(model, x), inference_form(model, x, "auto")
    plain = fooled(model, method(exact, x, y, ball=Ball("linf", 0.16)), y)
    judged = _judged(model, x, y, ball=Ball("linf", 0.16), method=method, fast=fast, exact=exact)
    assert (fooled(model, judged, y) >= plain).all()


def test_close_answers_are_given_by_the_exact_form() -> None:
    exact = LinearModel(torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 0.0]]), torch.tensor([-0.5, 0.5, -9.0]))
    fast = LinearModel(torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 0.0]]), torch.tensor([-0.52, 0.52, -9.0]))
    x = torch.tensor([[0.51, 0.0], [0.99, 0.0]])
    assert (fast(x).argmax(1) == torch.tensor([1, 0])).all()
    both = _Confirmed(fast, exact)(x)
    assert torch.equal(both[0], exact(x)[0])
    assert torch.equal(both[1], fast(x)[1])
