from __future__ import annotations

import pytest
import torch
from stolen_worlds import rows, victim

from buckler.nets import LinearModel
from buckler.theft.rounding import rounding


def test_scores_are_rounded_and_labels_are_kept() -> None:
    model, x = victim(steep=1.0), rows(200)
    before = model(x).softmax(1)
    for digits in (1, 2, 3):
        after = rounding(model, digits=digits)(x).softmax(1)
        rounded = (before * 10**digits).round() / 10**digits
        torch.testing.assert_close(after, rounded / rounded.sum(1, keepdim=True), atol=1e-5, rtol=0)
        assert torch.equal(after.argmax(1), before.argmax(1))
    assert len(rounding(model)(x).softmax(1).mul(1e4).round().unique()) < 40


@torch.no_grad()
def test_scores_that_all_round_to_nothing_still_say_the_label() -> None:
    weight = torch.zeros(40, 2)
    weight[7, 0] = 0.1
    scores = rounding(LinearModel(weight, torch.zeros(40)))(torch.ones(3, 2)).softmax(1)
    assert scores.argmax(1).tolist() == [7, 7, 7]
    assert float(scores[0, 7]) > 0.99


@pytest.mark.parametrize("digits", [0, 7])
def test_digits_are_one_to_six(digits: int) -> None:
    with pytest.raises(ValueError, match="1 to 6 digits"):
        rounding(victim(), digits=digits)
