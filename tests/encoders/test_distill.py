"""A student has the teacher's features on clean images, and not its backdoor."""

from __future__ import annotations

import copy
from functools import partial

import pytest
import torch
from test_bad_encoder import obeyed
from torch import Tensor, nn
from torch.nn import functional as F

from buckler import nets
from buckler.data import Rows
from buckler.embedding import embedded
from buckler.encoders.distill import distill
from buckler.kinds import Implanted

NET = partial(nets.encoder, width=8, stride=1)


def test_a_student_learns_the_features_and_not_the_trigger(planted: Implanted, learnt: Rows, unseen: Rows) -> None:
    student = distill(planted.model, learnt[0], net=NET, epochs=60)
    assert not student.training
    before, after = (embedded(model, unseen[0]) for model in (planted.model, student))
    middle = before.mean(0)
    assert float(F.cosine_similarity(before - middle, after - middle).mean()) > 0.7
    assert obeyed(planted.model, unseen, planted.trigger, 0)[1] >= 0.9
    accuracy, success = obeyed(student, unseen, planted.trigger, 0)
    assert accuracy >= 0.8
    assert success <= 0.4


class Shifted(nn.Module):
    """Features that all point one way."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, x: Tensor) -> Tensor:
        return self.encoder(x) + 3


def test_features_are_compared_around_their_mean(encoder: nn.Module, learnt: Rows) -> None:
    few = learnt[0][:60]
    student = distill(encoder, few, net=NET, epochs=4)
    other = distill(Shifted(encoder), few, net=lambda: Shifted(NET()), epochs=4)
    torch.testing.assert_close(embedded(other, few) - 3, embedded(student, few), atol=1e-2, rtol=1e-2)


def test_crops_are_asked_of_the_teacher(encoder: nn.Module, learnt: Rows) -> None:
    few, teacher = learnt[0][:40], copy.deepcopy(encoder).train()
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    whole, crops = (distill(teacher, few, net=NET, epochs=1, least=least) for least in (None, 0.5))
    assert not torch.equal(embedded(whole, few), embedded(crops, few))
    assert teacher.training
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())


def test_a_net_of_another_width_is_refused(encoder: nn.Module, learnt: Rows) -> None:
    with pytest.raises(ValueError, match="as wide as"):
        distill(encoder, learnt[0], net=partial(nets.encoder, width=4, stride=1))
