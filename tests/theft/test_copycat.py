from __future__ import annotations

import torch
from stolen_worlds import agreement, net, quick, rows, victim
from torch import nn

from buckler.target import Oracle
from buckler.theft.copycat import copycat
from buckler.theft.reverse_sigmoid import reverse_sigmoid

THIEF = quick(copycat)


def test_it_learns_from_labels_alone() -> None:
    """Whatever happens to scores while labels stay, the copy is the same to the last bit."""

    class Sharper(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return 7 * victim()(x) - 3

    made = [THIEF(Oracle(model, "labels", 100), rows(150), net=net) for model in (victim(), Sharper())]
    made.append(THIEF(Oracle(victim(), "scores", 100), rows(150), net=net))
    made.append(THIEF(Oracle(reverse_sigmoid(victim()), "labels", 100), rows(150), net=net))
    weights = [one.state_dict()["weight"] for one in made]
    assert all(torch.equal(weights[0], other) for other in weights[1:])
    assert agreement(made[0], victim()) > 0.85


def test_more_answers_make_a_better_copy() -> None:
    few, many = (
        sum(agreement(THIEF(Oracle(victim(), "labels", n), rows(200, s), net=net, seed=s), victim()) for s in range(3))
        for n in (8, 200)
    )
    assert many > few + 0.3
