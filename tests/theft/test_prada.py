"""PRADA against a loop that does what the paper says line by line, and against scipy's statistic of known distances."""

from __future__ import annotations

import math
import statistics

import pytest
import torch
from scipy import stats as scipy_stats
from torch import Tensor

from buckler.data import Rows
from buckler.theft.prada import prada


def natural(many: int, seed: int = 0, sides: int = 30) -> Rows:
    draw = torch.Generator().manual_seed(seed)
    return torch.rand(many, sides, generator=draw), torch.randint(2, (many,), generator=draw)


def synthetic(many: int, seed: int = 0) -> Rows:
    """Natural inputs, and then steps of one length away from each."""
    x, y = natural(many // 2, seed)
    step = 0.1 * torch.randn(x.shape, generator=torch.Generator().manual_seed(seed + 1)).sign()
    return torch.cat([x, (x + step).clamp(0, 1)]), torch.cat([y, y])


def naive(x: Tensor, y: Tensor, least: int, every: int) -> list[float]:
    grown: dict[int, list[Tensor]] = {}
    own: dict[int, list[float]] = {}
    cut: dict[int, float] = {}
    distances: list[float] = []
    scores: list[float] = []
    score = 0.0
    for number, (row, label) in enumerate(zip(x, y.tolist(), strict=True), 1):
        if label not in grown:
            grown[label], own[label], cut[label] = [row], [0.0], 0.0
        else:
            distance = min(math.dist(row.tolist(), other.tolist()) for other in grown[label])
            distances.append(distance)
            if distance > cut[label]:
                grown[label].append(row)
                own[label].append(distance)
                cut[label] = max(cut[label], statistics.fmean(own[label]) - statistics.pstdev(own[label]))
        if len(distances) > least and number % every == 0:
            middle, wide = statistics.fmean(distances), statistics.pstdev(distances)
            kept = [d for d in distances if middle - 3 * wide <= d <= middle + 3 * wide]
            score = 1 - float(scipy_stats.shapiro(kept).statistic)
        scores.append(score)
    return scores


@pytest.mark.parametrize("stream", [natural(90), synthetic(90)])
@pytest.mark.parametrize(("least", "every"), [(20, 1), (40, 7)])
def test_it_is_the_loop_of_the_paper(stream: Rows, least: int, every: int) -> None:
    found = prada(stream, least=least, every=every)
    assert found.score.tolist() == pytest.approx(naive(*stream, least, every), abs=1e-5)
    assert found.score[:least].eq(0).all()
    assert found.score[-1] > 0


def test_distances_in_a_row_are_tested_as_scipy_tests_them() -> None:
    """On a line of ever longer gaps every input joins the set and the distances are the gaps, outliers left out."""
    gaps = torch.linspace(0.001, 0.01, 60).tolist()
    gaps.append(0.3)
    x = torch.tensor([0.0, *gaps]).cumsum(0)[:, None]
    found = prada((x, torch.zeros(62, dtype=torch.long)), least=20, every=1)
    assert float(found.score[-1]) == pytest.approx(1 - float(scipy_stats.shapiro(gaps[:-1]).statistic), abs=1e-4)


def test_steps_of_one_length_are_flagged_and_natural_questions_are_not() -> None:
    assert not prada(natural(400)).flagged.any()
    found = prada(synthetic(400))
    assert found.flagged[-1]
    assert not found.flagged[:200].any()
    changes = found.flagged.int().diff()
    assert int(changes.sum()) == 1
    assert int(changes.min()) == 0, "who is flagged stays flagged"


def test_two_accounts_are_not_seen() -> None:
    x, y = synthetic(200)
    assert not any(prada((x[part::2], y[part::2])).flagged.any() for part in (0, 1))


@pytest.mark.parametrize("many", [0, 1, 150])
def test_the_past_alone_decides(many: int) -> None:
    x, y = synthetic(260)
    part = prada((x[:many], y[:many]))
    assert torch.equal(part.score, prada((x, y)).score[:many])
    assert part.flagged.shape == (many,)
    assert part.flagged.dtype == torch.bool


def test_the_same_input_again_and_again_says_nothing_and_bytes_are_read_as_numbers() -> None:
    x = torch.full((150, 1, 4, 4), 128, dtype=torch.uint8)
    assert prada((x, torch.zeros(150, dtype=torch.long))).score.eq(0).all()
    rows, y = synthetic(200)
    coarse = (rows * 255).to(torch.uint8)
    assert torch.allclose(prada((coarse, y)).score, prada((coarse / 255, y)).score)


@pytest.mark.parametrize("number", [math.nan, math.inf])
def test_a_question_of_no_number_does_not_blind_it(number: float) -> None:
    x, y = synthetic(400)
    blind = torch.cat([x[:5], torch.full_like(x[:1], number), x[5:]])
    with pytest.raises(ValueError, match="expected finite numbers, got others in 1 questions, the first of them 6"):
        prada((blind, torch.cat([y[:6], y[5:]])))


@pytest.mark.parametrize("wrong", [{"threshold": 1.5}, {"least": 2}, {"every": 0}, {"spread": 0.0}])
def test_numbers_out_of_range_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="expected a threshold"):
        prada(natural(10), **wrong)  # pyright: ignore[reportArgumentType]
