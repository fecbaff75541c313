"""A backdoor that is found is unlearnt, and features of clean images stay."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from test_bad_encoder import obeyed
from torch import Tensor, nn
from torch.nn import functional as F

import buckler.encoders.ssl_cleanse as module
from buckler.data import Rows
from buckler.embedding import embedded
from buckler.encoders.ssl_cleanse import ssl_cleanse
from buckler.kinds import Anomaly, Implanted


def test_the_trigger_no_longer_means_anything(planted: Implanted, learnt: Rows, unseen: Rows) -> None:
    before, undefended = obeyed(planted.model, unseen, planted.trigger, 0)
    mended = ssl_cleanse(planted.model, learnt[0], epochs=40)
    accuracy, success = obeyed(mended, unseen, planted.trigger, 0)
    assert undefended >= 0.9
    assert success <= 0.35
    assert accuracy >= before - 0.06


def test_a_clean_encoder_keeps_its_features(encoder: nn.Module, learnt: Rows, unseen: Rows) -> None:
    before, after = (
        embedded(model, unseen[0]) for model in (encoder, ssl_cleanse(encoder, learnt[0], steps=60, epochs=10))
    )
    middle = before.mean(0)
    assert float(F.cosine_similarity(before - middle, after - middle).mean()) > 0.8
    assert not torch.equal(before, after)


def test_no_search_is_refused(encoder: nn.Module, learnt: Rows) -> None:
    with pytest.raises(ValueError, match="one search"):
        ssl_cleanse(encoder, learnt[0], searches=0)


def test_where_no_trigger_is_found_nothing_is_unlearnt(encoder: nn.Module, learnt: Rows) -> None:
    x, fixed = learnt[0][:60], copy.deepcopy(encoder).requires_grad_(False)
    assert torch.equal(embedded(ssl_cleanse(encoder, x, steps=1, epochs=2), x), embedded(encoder, x))
    mended = ssl_cleanse(fixed, x, steps=30, alike=-1.0, epochs=1)
    assert not torch.equal(embedded(mended, x), embedded(encoder, x))
    assert not any(parameter.requires_grad for parameter in fixed.parameters())


def test_a_later_search_forgets_no_trigger_that_was_found(monkeypatch: pytest.MonkeyPatch) -> None:
    shown, x = list[int](), torch.rand(6, 1, 4, 4)

    def found(*_: object, **__: object) -> Anomaly:
        return Anomaly(torch.ones(1), torch.ones(1) > 0, torch.rand(1, 1, 4, 4), torch.rand(1, 1, 4, 4))

    def taught(model: nn.Module, data: Rows, *, loss: Callable[..., Tensor], **_: object) -> nn.Module:
        with model.register_forward_hook(lambda _part, given, _out: shown.append(len(given[0]))):
            loss(model, *data)
        return model

    monkeypatch.setattr(module, "decree", found)
    monkeypatch.setattr(module, "fit", taught)
    ssl_cleanse(nn.Sequential(nn.Flatten(), nn.Linear(16, 4)), x, searches=2)
    assert shown == [2 * 6, 3 * 6], "images as they are, and with each trigger"
