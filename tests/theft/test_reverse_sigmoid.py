from __future__ import annotations

import math

import pytest
import torch
from stolen_worlds import rows, victim

from buckler.theft.reverse_sigmoid import reverse_sigmoid


def test_it_is_the_paper_s_formula() -> None:
    model, x = victim(steep=2.0), rows(40)
    after = reverse_sigmoid(model, beta=0.7, gamma=0.3)(x).softmax(1)
    for scores, shown in zip(model(x).softmax(1).double().tolist(), after.tolist(), strict=True):
        moved = [y - 0.7 * (1 / (1 + math.exp(-0.3 * math.log(y / (1 - y)))) - 0.5) for y in scores]
        assert shown == pytest.approx([max(y, 0) / sum(max(z, 0) for z in moved) for y in moved], abs=1e-5)


def test_nothing_is_taken_with_beta_0_and_different_answers_look_alike_otherwise() -> None:
    model, x = victim(), rows(100)
    before = model(x).softmax(1).detach()
    torch.testing.assert_close(reverse_sigmoid(model, beta=0.0)(x).softmax(1), before, atol=1e-6, rtol=0)
    after = reverse_sigmoid(model)(x).softmax(1).detach()
    assert float(torch.cdist(after, after).mean()) < 0.6 * float(torch.cdist(before, before).mean())


@pytest.mark.parametrize(("beta", "gamma"), [(-0.1, 0.2), (1.1, 0.2), (0.5, 0.0)])
def test_knobs_that_make_no_sense_are_refused(beta: float, gamma: float) -> None:
    with pytest.raises(ValueError, match="beta in"):
        reverse_sigmoid(victim(), beta=beta, gamma=gamma)
