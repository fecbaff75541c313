"""More pre-training makes an encoder forget a backdoor, and is attacked by who expects it."""

from __future__ import annotations

from functools import partial
from types import SimpleNamespace
from typing import cast

import torch
from test_bad_encoder import obeyed
from torch import nn

from buckler.data import Rows
from buckler.embedding import embedded
from buckler.encoders import _backdoor
from buckler.encoders._setting import Setting
from buckler.encoders.continued_pretraining import continued_pretraining
from buckler.encoders.decree import decree
from buckler.encoders.fine_pruning import fine_pruning
from buckler.kinds import Implanted
from buckler.method import describe


def test_a_backdoor_is_forgotten_and_not_what_the_encoder_is_good_for(
    encoder: nn.Module, planted: Implanted, learnt: Rows, unseen: Rows
) -> None:
    before = {name: value.clone() for name, value in planted.model.state_dict().items()}
    repaired = continued_pretraining(planted.model, learnt[0], epochs=80)
    assert not repaired.training
    assert all(torch.equal(value, before[name]) for name, value in planted.model.state_dict().items())
    assert obeyed(planted.model, unseen, planted.trigger, 0)[1] >= 0.9
    accuracy, success = obeyed(repaired, unseen, planted.trigger, 0)
    assert success <= 0.3
    assert accuracy >= obeyed(encoder, unseen, planted.trigger, 0)[0] - 0.06


def test_no_epochs_change_nothing(encoder: nn.Module, learnt: Rows) -> None:
    same = continued_pretraining(encoder, learnt[0], epochs=0)
    assert torch.equal(embedded(same, learnt[0]), embedded(encoder, learnt[0]))


def test_it_is_attacked_by_who_knows_it() -> None:
    for method, path, knobs in (
        (continued_pretraining, "encoders/persistent", {"alike": None}),
        (partial(fine_pruning, alike=0.8), "encoders/persistent", {"alike": 0.8}),
        (decree, "encoders/drupe", {}),
    ):
        known = _backdoor.knowing(cast(Setting, SimpleNamespace(attack=None, described=describe(method))))
        assert known is not None
        assert describe(known).path == path
        assert describe(known).params.items() >= knobs.items()
