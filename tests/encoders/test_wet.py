"""WET: the null over keys, what it costs, and who has the mark."""

from __future__ import annotations

import pytest
import torch
from stealing_worlds import WIDE, net, never_too_small, random_encoder, rows
from torch import nn

from buckler.encoders.stolen_encoder import stolen_encoder
from buckler.encoders.wet import wet
from buckler.target import Oracle


@pytest.mark.parametrize("suspect", [0, 1])
def test_p_values_are_never_too_small_for_a_fixed_encoder(suspect: int) -> None:
    """Even for the very encoder that was marked, as it was before: it does not depend on the key."""
    model, data = random_encoder(0), rows(40)
    never_too_small(
        torch.tensor([wet(model, data, most=20, seed=s).claim(random_encoder(suspect)).p for s in range(60)])
    )


def test_features_are_the_same_numbers_elsewhere() -> None:
    model, (x, y) = random_encoder(0), rows(40)
    made = wet(model, (x, y)).model
    assert made is not None
    assert torch.allclose(made(x).sort(1).values, model(x).sort(1).values, atol=1e-6)
    assert not torch.allclose(made(x), model(x))


def test_copies_have_it_and_turned_or_wider_ones_do_not() -> None:
    made = wet(random_encoder(0), rows(100))
    assert made.model is not None
    assert made.claim(made.model).p == 1e-4
    assert made.claim(made.model).queries == 100
    oracle = Oracle(made.model, "features")
    assert made.claim(oracle).p == 1e-4
    assert made.claim(stolen_encoder(oracle, rows(150, 5)[0], net=net, epochs=30, rate=0.2)).p < 1e-3
    turn = nn.Linear(WIDE, WIDE, bias=False)
    turn.weight = nn.Parameter(torch.eye(WIDE).roll(1, 0))
    assert made.claim(nn.Sequential(made.model, turn)).p > 0.01
    assert made.claim(random_encoder(0, WIDE + 1)).p == 1


def test_too_few_rows_are_said() -> None:
    with pytest.raises(ValueError, match="two rows or more to ask a suspect about, got 1"):
        wet(random_encoder(0), rows(1))
