"""Entropies against their sums, term by term."""

from __future__ import annotations

import math

import pytest
import torch

from buckler.privacy.entropy import entropy
from buckler.target import Oracle


def scored(probabilities: torch.Tensor, y: torch.Tensor, *, modified: bool) -> torch.Tensor:
    x = torch.arange(float(len(y)))[:, None]
    return entropy(Oracle(lambda rows: probabilities[rows[:, 0].long()]), x, y, modified=modified)


@pytest.mark.parametrize("modified", [True, False])
def test_it_is_its_sum_term_by_term(modified: bool) -> None:
    draw = torch.Generator().manual_seed(0)
    probabilities = torch.randn(20, 5, generator=draw).softmax(1)
    y = torch.randint(0, 5, (20,), generator=draw)
    expected: list[float] = []
    for row, label in zip(probabilities.double().tolist(), y.tolist(), strict=True):
        if modified:
            others = sum(p * math.log(1 - p) for k, p in enumerate(row) if k != label)
            expected.append((1 - row[label]) * math.log(row[label]) + others)
        else:
            expected.append(sum(p * math.log(p) for p in row))
    assert scored(probabilities, y, modified=modified).tolist() == pytest.approx(expected, rel=1e-5)


def test_a_sure_mistake_is_no_member_by_the_modified_entropy_only() -> None:
    answers = torch.tensor([[0.98, 0.01, 0.01], [0.98, 0.01, 0.01], [0.4, 0.3, 0.3]])
    y = torch.tensor([0, 1, 0])
    right, wrong, unsure = scored(answers, y, modified=True).tolist()
    assert wrong < unsure < right
    right, wrong, unsure = scored(answers, y, modified=False).tolist()
    assert unsure < wrong == right


def test_answers_without_doubt_are_finite() -> None:
    answers = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    scores = scored(answers, torch.tensor([0, 0]), modified=True)
    assert bool(scores.isfinite().all())
    assert float(scores[0]) == pytest.approx(0.0, abs=1e-6)
    assert float(scores[1]) < -50
