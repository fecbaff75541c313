"""SimSiam on the world in which what is to be learnt is known."""

from __future__ import annotations

import torch
from pretraining_worlds import apart, net, world

from buckler.encoders.simsiam import simsiam


def test_what_views_share_is_learnt_and_what_they_do_not_is_not() -> None:
    made = simsiam(world(256), net=net, epochs=30, batch=64)
    untrained = simsiam(world(256), net=net, epochs=0, batch=64)
    assert apart(made) > 2 * apart(untrained)


def test_labels_are_not_looked_at() -> None:
    x, y = world(64)
    one, other = (simsiam((x, labels), net=net, epochs=2, batch=32) for labels in (y, torch.full_like(y, 7)))
    assert all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True))
