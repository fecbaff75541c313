"""Label-only: the further from the boundary, the more noise a label outlives."""

from __future__ import annotations

import pytest
import torch
from membership_worlds import by_heart, noise

from buckler import stats
from buckler.nets import LinearModel
from buckler.privacy.label_only import label_only
from buckler.target import Oracle, QueryBudgetExceeded


def line() -> LinearModel:
    """Class 1 where the mean of the pixels is above a half."""
    weight = torch.zeros(2, 36)
    weight[1] = 1.0
    return LinearModel(weight, torch.tensor([18.0, 0.0]))


def test_scores_follow_the_distance_to_the_boundary() -> None:
    levels = torch.tensor([0.4, 0.48, 0.495, 0.505, 0.52, 0.6])
    x = levels[:, None, None, None].expand(6, 1, 6, 6).contiguous()
    y = (levels > 0.5).long()
    near, middle, far = (label_only(Oracle(line(), "labels"), x, y, queries=200)[[i, 5 - i]] for i in (2, 1, 0))
    assert float(near.max()) < float(middle.min()) <= float(middle.max()) < float(far.min())


def test_a_row_that_is_answered_wrong_is_below_all_others() -> None:
    x = torch.tensor([0.4, 0.495])[:, None, None, None].expand(2, 1, 6, 6).contiguous()
    wrong, right = label_only(Oracle(line(), "labels"), x, torch.tensor([1, 0]), queries=50).tolist()
    assert wrong <= 0 < right
    x = x[[1, 1]]
    wrong, right = label_only(Oracle(line(), "labels"), x, torch.tensor([1, 0]), queries=50).tolist()
    assert wrong <= 0 < right


def test_what_was_learnt_by_heart_is_told() -> None:
    (x, y), (u, v) = noise(100), noise(100, seed=1)
    model, member = by_heart((x, y)), (torch.arange(200) < 100).double()
    scores = label_only(Oracle(model, "labels"), torch.cat([x, u]), torch.cat([y, v]), queries=20)
    assert stats.area(torch.stack([scores, member], 1), "r").low > 0.7


def test_a_row_s_score_does_not_depend_on_its_batch_and_the_budget_holds() -> None:
    x, _ = noise(10)
    y = line()(x).argmax(1)
    whole = label_only(Oracle(line(), "labels"), x, y, queries=30)
    part = label_only(Oracle(line(), "labels"), x[[7, 2]], y[[7, 2]], queries=30)
    assert torch.equal(part, whole[[7, 2]])
    oracle = Oracle(line(), "labels", budget=299)
    with pytest.raises(QueryBudgetExceeded):
        label_only(oracle, x, y, queries=30)
    assert oracle.asked <= 299


@pytest.mark.parametrize(("queries", "largest"), [(0, 0.5), (10, 0.0)])
def test_no_queries_and_no_noise_are_refused(queries: int, largest: float) -> None:
    x, y = noise(2)
    with pytest.raises(ValueError, match="expected a query or more"):
        label_only(Oracle(line(), "labels"), x, y, queries=queries, largest=largest)
