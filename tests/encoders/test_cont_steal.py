"""Cont-Steal: its loss against a loop, and its copies."""

from __future__ import annotations

import math

import torch
from stealing_worlds import closeness, net, random_encoder, rows
from torch.nn import functional as F

from buckler.encoders.cont_steal import _contrasted, cont_steal
from buckler.target import Oracle


def test_the_loss_is_what_a_loop_says() -> None:
    draw = torch.Generator().manual_seed(0)
    copied, answers = (F.normalize(torch.randn(5, 3, generator=draw), dim=1) for _ in range(2))
    for i, got in enumerate(_contrasted(copied, answers, 0.3).tolist()):
        near = [math.exp(float(copied[i] @ answers[j]) / 0.3) for j in range(5)]
        own = [math.exp(float(copied[i] @ copied[j]) / 0.3) for j in range(5) if j != i]
        assert math.isclose(got, -math.log(near[i] / (sum(near) + sum(own))), rel_tol=1e-5)


def test_a_copy_is_like_its_encoder_and_not_like_another() -> None:
    oracle = Oracle(random_encoder(0), "features", 120)
    copy = cont_steal(oracle, rows(200)[0], net=net, epochs=60, rate=0.2)
    assert oracle.asked == 120
    assert closeness(copy, random_encoder(0)) > 0.7
    assert closeness(copy, random_encoder(1)) < 0.5


def test_views_are_looked_at_and_the_seed_decides() -> None:
    def made(seed: int, least: float) -> torch.Tensor:
        oracle = Oracle(random_encoder(0), "features")
        copy = cont_steal(oracle, rows(40)[0], net=net, epochs=2, least=least, seed=seed)
        return copy.get_parameter("1.weight").detach()

    assert torch.equal(made(0, 0.5), made(0, 0.5))
    assert not torch.equal(made(0, 0.5), made(0, 1.0))
    assert not torch.equal(made(0, 0.5), made(1, 0.5))
