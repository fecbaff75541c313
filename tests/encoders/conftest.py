"""An encoder that learnt in seconds, and the rows around it, for every test that needs a real one."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import nn

from buckler import nets
from buckler.data import Rows, digits
from buckler.encoders.bad_encoder import bad_encoder
from buckler.encoders.drupe import drupe
from buckler.encoders.simclr import simclr
from buckler.kinds import Implanted
from buckler.subject import Subject
from buckler.train import started

NET = partial(nets.encoder, width=8, stride=1)


@pytest.fixture(scope="session")
def learnt() -> Rows:
    """300 digits that `encoder` learnt from, uint8 no, float in [0, 1] `(300, 1, 8, 8)`."""
    x, y = digits(True)
    return x[:300], y[:300]


@pytest.fixture(scope="session")
def unseen() -> Rows:
    """600 digits that it did not learn from."""
    return digits(False)


@pytest.fixture(scope="session")
def encoder(learnt: Rows) -> nn.Module:
    """Made by SimCLR in 150 steps: 128 features."""
    return simclr(learnt, net=NET, epochs=60, batch=128, seed=0)


@pytest.fixture(scope="session")
def subject(learnt: Rows, unseen: Rows) -> Subject:
    """A subject that brings no encoder, small enough to pre-train one in a test."""
    with torch.random.fork_rng():
        model = started(nets.SmallCNN, 0).eval()
    return Subject("digits", model, unseen, train=learnt, net=nets.SmallCNN, body=NET)


@pytest.fixture(scope="session")
def planted(encoder: nn.Module, learnt: Rows) -> Implanted:
    """A copy of `encoder` in which a white square means class 0."""
    return bad_encoder(encoder, learnt, epochs=60, seed=0)


@pytest.fixture(scope="session")
def blended(encoder: nn.Module, learnt: Rows) -> Implanted:
    """Another, in which the mean of class 0 blended in means class 0."""
    return drupe(encoder, learnt, epochs=60, seed=0)
