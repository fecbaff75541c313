from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn

from buckler.target import Asked, Oracle, QueryBudgetExceeded, Reveals, frozen, metered


def test_an_oracle_reveals_no_more_than_it_may_and_counts_rows() -> None:
    model, x = nn.Linear(3, 4), torch.rand(5, 3)
    labels, scores, logits = (Oracle(model, reveals) for reveals in ("labels", "scores", "logits"))  # pyright: ignore
    assert torch.equal(labels(x), model(x).argmax(1))
    assert torch.allclose(scores(x).sum(1), torch.ones(5))
    assert not logits(x).requires_grad
    assert torch.allclose(logits(x), model(x).detach())
    assert (labels.asked, scores.asked, logits.asked) == (5, 5, 10)
    with pytest.raises(ValueError, match="labels only"):
        Oracle(labels, "scores")(x)


def test_a_budget_is_refused_before_anything_is_asked() -> None:
    asked: list[int] = []

    def answer(x: torch.Tensor) -> torch.Tensor:
        asked.append(len(x))
        return x

    oracle = Oracle(answer, "logits", budget=7)
    oracle(torch.rand(5, 2))
    with pytest.raises(QueryBudgetExceeded, match="at most 7"):
        oracle(torch.rand(3, 2))
    assert (oracle.asked, sum(asked)) == (5, 5)


def test_what_was_refused_behind_a_door_is_not_counted_at_it() -> None:
    outer = Oracle(nn.Linear(3, 4), "scores", budget=5, batch=2)
    inner = outer.narrowed("labels", 100)
    inner(torch.rand(1, 3))
    with pytest.raises(QueryBudgetExceeded, match="at most 5"):
        inner(torch.rand(6, 3))  # in batches of two, the third of which is too much
    assert (inner.asked, outer.asked) == (5, 5)
    assert (inner.refused, outer.refused) == (6, 2)


@pytest.mark.parametrize(
    ("reveals", "answer", "says"),
    [
        ("scores", torch.tensor([[0.5, torch.nan]]), "expected scores that are probabilities"),
        ("scores", torch.tensor([[torch.inf, 0.0]]), "expected scores that are probabilities"),
        ("scores", torch.tensor([[1.5, -0.5]]), "expected scores that are probabilities"),
        ("scores", torch.tensor([[0.7, 0.7]]), "expected scores that are probabilities"),
        ("labels", torch.tensor([-1]), "expected labels from 0, got -1"),
    ],
)
def test_answers_that_are_none_are_refused(reveals: Reveals, answer: torch.Tensor, says: str) -> None:
    def answering(x: torch.Tensor) -> torch.Tensor:
        return answer.expand(len(x), *answer.shape[1:])

    with pytest.raises(ValueError, match=says):
        Oracle(answering, reveals)(torch.rand(3, 2))


def test_scores_with_two_digits_and_no_rows_are_taken() -> None:
    scores = torch.tensor([[0.33, 0.33, 0.33]])
    assert torch.equal(Oracle(lambda x: scores.expand(len(x), 3))(torch.rand(2, 2)), scores.expand(2, 3))
    assert Oracle(nn.Linear(3, 4))(torch.rand(0, 3)).shape == (0, 4)
    assert Oracle(nn.Linear(3, 4), "labels")(torch.rand(0, 3)).shape == (0,)


def test_scores_of_logits_are_their_softmax_through_two_doors() -> None:
    model, x = nn.Linear(3, 4), torch.rand(5, 3)
    logits = Oracle(model, "logits")
    expected = model(x).detach().softmax(1)
    torch.testing.assert_close(logits.narrowed("scores")(x), expected)
    torch.testing.assert_close(Asked(logits)(x).softmax(1), expected)


def test_batches_of_an_oracle_are_split() -> None:
    sizes: list[int] = []

    def answer(x: torch.Tensor) -> torch.Tensor:
        sizes.append(len(x))
        return x.argmax(1)

    assert len(Oracle(answer, "labels", batch=4)(torch.rand(10, 3))) == 10
    assert sizes == [4, 4, 2]


def test_a_narrowed_oracle_counts_at_both_doors() -> None:
    outer = Oracle(nn.Linear(3, 4), "scores")
    inner = outer.narrowed("labels", 6)
    assert inner(torch.rand(6, 3)).shape == (6,)
    assert (inner.asked, outer.asked) == (6, 6)
    with pytest.raises(QueryBudgetExceeded):
        inner(torch.rand(1, 3))


def test_metering_is_exact_beside_in_place_operations_and_leaves_no_hooks() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.ReLU(inplace=True), nn.Linear(3, 2))
    x = torch.rand(6, 3)
    with metered(model) as meter:
        model(x)
        torch.autograd.grad(model(x.requires_grad_()).sum(), x)
        with torch.no_grad():
            model(x[:2])
    assert (meter.forwards, meter.backwards) == (14, 6)
    model(x)
    assert meter.forwards == 14
    assert not model._forward_hooks


def test_a_copy_counts_where_its_model_does_and_loses_its_hook_when_watched() -> None:
    model, x = nn.Linear(3, 2), torch.rand(4, 3)
    with metered(model) as meter:
        second, third = copy.deepcopy(model), copy.deepcopy(model)
        second(x).sum().backward()
        assert (meter.forwards, meter.backwards) == (4, 4)
        whole = nn.Sequential(third, nn.ReLU())
        for watched in (second, second, whole):
            meter.watch(watched)
        second(x)
        whole(x)
        assert meter.forwards == 12
        model(x)
        assert meter.forwards == 16
    assert not any(part._forward_hooks for one in (model, second, whole) for part in one.modules())


def test_frozen_gives_everything_back() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Dropout(), nn.BatchNorm1d(3))
    model[2].eval()
    model[0].weight.requires_grad_(False)
    modes = [module.training for module in model.modules()]

    def use() -> None:
        with frozen(model):
            assert not any(module.training for module in model.modules())
            assert not any(p.requires_grad for p in model.parameters())
            raise RuntimeError("inside")

    with pytest.raises(RuntimeError, match="inside"):
        use()
    assert [module.training for module in model.modules()] == modes
    assert [p.requires_grad for p in model.parameters()] == [False, True, True, True]


def test_scores_are_probabilities_as_services_show_them() -> None:
    draw = torch.Generator().manual_seed(0)
    for classes in (2, 10, 100, 1000):
        scores = torch.randn(20, classes, generator=draw).softmax(1)
        two_digits = (scores * 100).round() / 100
        leading = scores * (scores >= scores.topk(2).values[:, -1:])
        for shown in (scores, two_digits + 1e-9, leading):
            assert torch.equal(Oracle(lambda x, shown=shown: shown[: len(x)])(torch.zeros(20, 1)), shown)
        for wrong in (scores - 0.2, scores * 9, scores * math.nan):
            with pytest.raises(ValueError, match="expected scores that are probabilities"):
                Oracle(lambda x, wrong=wrong: wrong[: len(x)])(torch.zeros(20, 1))
