"""RMIA against every pair of rows, and where the answer is known."""

from __future__ import annotations

import pytest
import torch
from membership_worlds import listed, normal_world

from buckler import stats
from buckler.privacy._shadows import Shadows
from buckler.privacy.rmia import rmia


def world(rows: int = 23, models: int = 6, seed: int = 0) -> tuple[torch.Tensor, Shadows, torch.Tensor]:
    draw = torch.Generator().manual_seed(seed)
    answers = [torch.randn(rows, 1, 3, generator=draw).log_softmax(-1) for _ in range(models + 1)]
    held = torch.rand(models, rows, generator=draw) < 0.5
    held[0], held[1] = True, False
    y = torch.randint(0, 3, (rows,), generator=draw)
    return answers[0], Shadows(held, answers[1:], y), y


def told(answers: torch.Tensor, row: int, label: int, temperature: float) -> float:
    powers = answers[row, 0].double().exp() ** (1 / temperature)
    return float(powers[label] / powers.sum())


@pytest.mark.parametrize("online", [True, False])
@pytest.mark.parametrize("gamma", [1.0, 2.0])
def test_sorting_says_what_all_pairs_say(online: bool, gamma: float) -> None:
    target, shadows, y = world()
    rows, a, temperature = len(y), 0.33, 2.0
    x = torch.arange(rows)[:, None].float()
    got = rmia(listed(target), x, y, shadows=shadows, online=online, gamma=gamma, offline=a)

    def probability(answers: torch.Tensor, row: int) -> float:
        return told(answers, row, int(y[row]), temperature)

    ratios: list[float] = []
    for row in range(rows):
        ins = [probability(s, row) for s, h in zip(shadows.answers, shadows.held, strict=True) if bool(h[row])]
        outs = [probability(s, row) for s, h in zip(shadows.answers, shadows.held, strict=True) if not bool(h[row])]
        out = sum(outs) / len(outs)
        general = (sum(ins) / len(ins) + out) / 2 if online else 0.5 * ((1 + a) * out + (1 - a))
        ratios.append(probability(target, row) / general)
    beaten = [sum(one / other >= gamma * (1 - 1e-12) for other in ratios) / rows for one in ratios]
    expected = [share + one / (1 + one) / (2 * rows) for share, one in zip(beaten, ratios, strict=True)]
    assert got.tolist() == pytest.approx(expected, abs=1e-7)


@pytest.mark.parametrize("seed", range(3))
def test_the_correction_is_the_one_that_works_best_on_shadows(seed: int) -> None:
    """Tried one by one: for each of the first shadows, on rows that some other shadow does not hold."""
    target, shadows, y = world(seed=seed)
    held, answers = shadows.held.tolist(), shadows.answers
    areas: dict[float, float] = {}
    for step in range(11):
        a, areas[step / 10] = step / 10, 0.0
        for one in range(2, 4):  # the first two hold all rows, or none: nobody is told apart
            sides: dict[bool, list[float]] = {True: [], False: []}
            for row in range(len(y)):
                label = int(y[row])
                outs = [told(answers[m], row, label, 2.0) for m in range(len(held)) if m != one and not held[m][row]]
                general = (1 + a) * sum(outs) / len(outs) + 1 - a
                sides[held[one][row]].append(told(answers[one], row, label, 2.0) / general)
            pairs = [(p > q) + (p == q) / 2 for p in sides[True] for q in sides[False]]
            areas[a] += sum(pairs) / len(pairs)
    best = max(areas, key=areas.__getitem__)
    x = torch.arange(len(y))[:, None].float()
    tuned = rmia(listed(target), x, y, shadows=shadows, online=False)
    assert torch.equal(tuned, rmia(listed(target), x, y, shadows=shadows, online=False, offline=best))
    assert (
        sum(torch.equal(tuned, rmia(listed(target), x, y, shadows=shadows, online=False, offline=a)) for a in areas)
        < 11
    )


def test_a_target_that_learnt_nothing_gives_nobody_away_and_one_that_did_does() -> None:
    for gain, known in ((0.0, False), (1.5, True)):
        oracle, x, y, member, shadows = normal_world(4000, 8, gain=gain)
        for online in (True, False):
            scores = rmia(oracle, x, y, shadows=shadows, online=online)
            estimate = stats.area(torch.stack([scores, member.double()], 1), "r", 0.999)
            assert (estimate.low > 0.6) is known
            assert (estimate.low <= 0.5 <= estimate.high) is not known


def test_shadows_that_are_sure_of_everything_leave_numbers() -> None:
    target, shadows, y = world()
    sure = [(3000 * answers).log_softmax(-1) for answers in shadows.answers]
    x = torch.arange(len(y))[:, None].float()
    scores = rmia(listed(target), x, y, shadows=Shadows(shadows.held, sure, y), online=False)
    assert bool(scores.isfinite().all())


def test_rows_that_gained_less_than_gamma_are_ordered_as_well() -> None:
    """A target that is hardly surer than others beats nobody by a factor of two, and still gives members away."""
    oracle, x, y, member, shadows = normal_world(2000, 8, gain=0.6, spread=0.3)
    scores = rmia(oracle, x, y, shadows=shadows, online=False, gamma=2.0, offline=0.33)
    assert float(scores.max()) < 0.05
    assert stats.area(torch.stack([scores.float(), member.float()], 1), "r").low > 0.55


def test_the_score_grows_with_the_ratio_alone() -> None:
    """One population serves all rows: it gives the ratio a scale and does not change its order."""
    target, shadows, y = world(200)
    x = torch.arange(200)[:, None].float()
    one, other = (rmia(listed(target), x, y, shadows=shadows, gamma=gamma) for gamma in (1.0, 1.5))
    order = one.argsort()
    assert bool((other[order].diff() >= 0).all())


@pytest.mark.parametrize(
    ("knobs", "says"),
    [({"gamma": 0.5}, "gamma of 1 or more"), ({"offline": 1.5}, "offline in"), ({"temperature": 0.0}, "temperature")],
)
def test_knobs_that_mean_nothing_are_refused(knobs: dict[str, float], says: str) -> None:
    target, shadows, y = world()
    with pytest.raises(ValueError, match=says):
        rmia(listed(target), torch.arange(23)[:, None].float(), y, shadows=shadows, **knobs)  # pyright: ignore


def test_a_row_that_every_shadow_holds_is_refused() -> None:
    target, shadows, y = world()
    held = torch.ones_like(shadows.held)
    with pytest.raises(ValueError, match="got a row without"):
        rmia(listed(target), torch.arange(23)[:, None].float(), y, shadows=Shadows(held, shadows.answers, y))
