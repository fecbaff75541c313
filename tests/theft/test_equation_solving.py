from __future__ import annotations

import pytest
import torch
from stolen_worlds import SIDES, agreement, rows, victim

from buckler.target import Oracle
from buckler.theft.equation_solving import equation_solving


@pytest.mark.parametrize("reveals", ["scores", "logits"])
def test_d_plus_one_answers_are_the_model_and_d_are_not(reveals: str) -> None:
    model, x = victim(steep=2.0), rows(500, 7)
    truth = model(x).log_softmax(1).detach()
    oracle = Oracle(model, reveals, SIDES + 1)  # pyright: ignore[reportArgumentType]
    made = equation_solving(oracle, rows(SIDES + 1), spare=1)
    assert oracle.asked == SIDES + 1
    torch.testing.assert_close(made(x).log_softmax(1).detach(), truth, atol=2e-4, rtol=0)
    assert agreement(made, model) > 0.999
    few = equation_solving(Oracle(model, "scores", SIDES), rows(SIDES), spare=1)
    assert float((few(x).log_softmax(1).detach() - truth).abs().max()) > 0.05


def test_noise_makes_up_for_a_small_pool_and_more_answers_for_rounding() -> None:
    model = victim(steep=2.0)
    oracle = Oracle(model, "scores")
    assert agreement(equation_solving(oracle, rows(2), spare=2), model) > 0.999
    assert oracle.asked == 2 * (SIDES + 1)
    x = rows(500, 7)

    def off(many: int) -> float:
        coarse = Oracle(lambda x: (model(x).softmax(1) * 50).round() / 50 + 1e-3, "scores")
        made = equation_solving(coarse, rows(many), spare=1)
        return float((made(x).log_softmax(1) - model(x).log_softmax(1)).detach().abs().mean())

    assert off(400) < 0.7 * off(SIDES + 1)


def test_what_cannot_be_solved_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one answer"):
        equation_solving(Oracle(victim(), "scores", 0), rows(9))
    with pytest.raises(ValueError, match="spare of 1 or more"):
        equation_solving(Oracle(victim(), "scores"), rows(9), spare=0.5)


def test_a_score_that_is_rounded_to_nothing_is_finite() -> None:
    made = equation_solving(Oracle(victim(steep=300.0), "scores"), rows(100))
    assert made(rows(50)).isfinite().all()
    assert agreement(made, victim(steep=300.0)) > 0.8
