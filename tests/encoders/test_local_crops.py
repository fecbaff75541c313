"""Localized cropping learns what SimCLR learns, of views that lie near each other."""

from __future__ import annotations

import torch
from pretraining_worlds import apart, net, world

from buckler.encoders.local_crops import local_crops


def test_something_is_learnt_and_labels_are_not_looked_at() -> None:
    x, y = world(128)
    made = local_crops((x, y), net=net, epochs=20, batch=64)
    again = local_crops((x, torch.zeros_like(y)), net=net, epochs=20, batch=64)
    assert apart(made) > 1.5 * apart(local_crops((x, y), net=net, epochs=0, batch=64))
    assert all(torch.equal(a, b) for a, b in zip(made.state_dict().values(), again.state_dict().values(), strict=True))
