"""SimCLR on a world in which what is to be learnt is known: objects that light and place do not change."""

from __future__ import annotations

import torch
from pretraining_worlds import SHAPES, apart, net, world

from buckler.encoders._contrast import headed
from buckler.encoders.simclr import simclr


def test_what_views_share_is_learnt_and_what_they_do_not_is_not() -> None:
    made = simclr(world(256), net=net, epochs=30, batch=64)
    untrained = simclr(world(256), net=net, epochs=0, batch=64)
    assert apart(made) > 2 * apart(untrained)
    assert SHAPES == 4


def test_labels_are_not_looked_at() -> None:
    x, y = world(64)
    one, other = (simclr((x, labels), net=net, epochs=2, batch=32) for labels in (y, torch.full_like(y, 7)))
    assert all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True))


def test_the_head_is_where_the_encoder_is() -> None:
    x, y = world(4)
    model = headed(lambda: net().to("meta"), (x, y), 8, 0)
    assert {weight.device.type for weight in model.parameters()} == {"meta"}
