"""Pre-training in bfloat16: networks multiply in it, what they learn is as good, and losses are as exact as ever."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from pretraining_worlds import apart, net, world

from buckler.encoders._contrast import contrast
from buckler.encoders.simclr import simclr
from buckler.encoders.simsiam import simsiam


@pytest.mark.parametrize("pretrain", [simclr, simsiam])
def test_what_is_learnt_in_bfloat16_is_as_good_and_held_in_float32(pretrain: Callable[..., Any]) -> None:
    made, exact, untrained = (
        pretrain(world(256), net=net, epochs=epochs, batch=64, precision=precision)
        for epochs, precision in ((30, "bfloat16"), (30, "float32"), (0, "bfloat16"))
    )
    assert apart(made) > 2 * apart(untrained)
    assert apart(made) > apart(exact) / 2
    for one, other in zip(made.parameters(), exact.parameters(), strict=True):
        assert one.dtype == torch.float32
        assert not torch.equal(one, other)


def test_cosines_are_as_exact_where_the_network_is_not() -> None:
    z = torch.randn(24, 16, generator=torch.Generator().manual_seed(0))
    with torch.autocast("cpu", torch.bfloat16):
        rounded = z @ z.T
        found = contrast(z, 0.2)
    assert rounded.dtype == torch.bfloat16
    assert torch.equal(found, contrast(z, 0.2))
