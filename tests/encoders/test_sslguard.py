"""SSLGuard: the null over keys, and encoders that carry the mark."""

from __future__ import annotations

import pytest
import torch
from stealing_worlds import deep, never_too_small, random_encoder, rows
from torch import nn

from buckler.data import Rows
from buckler.encoders.sslguard import sslguard
from buckler.train import started


@pytest.mark.parametrize("suspect", [random_encoder(3), nn.Flatten()], ids=["random", "pixels"])
def test_p_values_are_never_too_small_for_a_fixed_encoder(suspect: nn.Module) -> None:
    data = rows(20)
    never_too_small(
        torch.tensor([sslguard(random_encoder(0), data, pairs=6, epochs=0, seed=s).claim(suspect).p for s in range(60)])
    )


def test_a_marked_encoder_is_claimed_and_others_are_not() -> None:
    model, data = started(lambda: deep(32), 0).eval(), rows(200)
    made = sslguard(model, data, pairs=8, epochs=20, rate=0.1, weight=1.0)
    assert made.model is not None
    claim = made.claim(made.model)
    assert claim.p < 1e-3
    assert claim.queries == 2 * 8 * 8
    turn = torch.linalg.qr(torch.randn(32, 32, generator=torch.Generator().manual_seed(0))).Q
    last = nn.Linear(32, 32, bias=False)
    last.weight = nn.Parameter(turn)
    assert made.claim(nn.Sequential(made.model, last)).p < 1e-3, "however it is turned"
    assert min(made.claim(one).p for one in (model, random_encoder(1), random_encoder(2))) > 0.01
    assert sslguard(model, data, pairs=8, epochs=0, seed=1).claim(made.model).p > 0.01, "another key"


def test_the_owner_s_encoder_is_left_as_it_was_and_batch_norms_too(encoder: nn.Module, learnt: Rows) -> None:
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    made = sslguard(encoder, learnt, pairs=4, epochs=0.5)
    assert all(torch.equal(value, before[name]) for name, value in encoder.state_dict().items())
    assert made.model is not None
    after = made.model.state_dict()
    running = [name for name in before if "running" in name]
    assert running
    assert all(torch.equal(after[name], before[name]) for name in running)
    assert any(not torch.equal(after[name], before[name]) for name in before)


def test_what_cannot_be_marked_is_said() -> None:
    with pytest.raises(ValueError, match="4 pairs and rows or more, and a share above 0 that is covered, got 3"):
        sslguard(random_encoder(0), rows(9), pairs=3)
