"""MoCo on the world in which what is to be learnt is known, and its slower copy against a hand-written step."""

from __future__ import annotations

import torch
from pretraining_worlds import apart, net, world

from buckler.encoders.moco import moco


def test_what_views_share_is_learnt_and_what_they_do_not_is_not() -> None:
    made = moco(world(256), net=net, epochs=30, batch=64)
    untrained = moco(world(256), net=net, epochs=0, batch=64)
    assert apart(made) > 2 * apart(untrained)


def test_a_queue_that_a_hasty_copy_fills_teaches_nothing() -> None:
    """The paper's table 4a: momentum is what makes old answers comparable with new ones."""
    hasty = moco(world(256), net=net, epochs=30, batch=64, momentum=0.5)
    assert apart(hasty) < 1


def test_labels_are_not_looked_at_and_odd_batches_do_no_harm() -> None:
    x, y = world(67)
    one, other = (moco((x, labels), net=net, epochs=2, batch=33) for labels in (y, torch.full_like(y, 7)))
    assert all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True))
