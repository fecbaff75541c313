"""A decoder against an encoder that only mixes pixels, and against features that have nothing to do with images."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import Tensor, nn

from buckler.data import Rows
from buckler.embedding import embedded
from buckler.encoders.decoder import decoder
from buckler.pictures import identified, psnr
from buckler.target import Oracle

QUICK = partial(decoder, epochs=20)


def test_what_was_only_mixed_is_unmixed(learnt: Rows, unseen: Rows) -> None:
    mixing = torch.linalg.qr(torch.randn(64, 64, generator=torch.Generator().manual_seed(0))).Q

    def mixed(rows: Tensor) -> Tensor:
        return rows.flatten(1) @ mixing

    oracle, x = Oracle(mixed, "features"), unseen[0][:20]
    found = QUICK(oracle, mixed(x), images=learnt[0]).x
    assert found.shape == x.shape
    assert float(psnr(found, x).median()) > 16
    assert oracle.asked == len(learnt[0]), "once for each image of one's own"


def test_features_of_nothing_tell_no_more_than_the_mean(learnt: Rows, unseen: Rows) -> None:
    def noise(rows: Tensor) -> Tensor:
        return torch.randn(len(rows), 32, generator=torch.Generator().manual_seed(len(rows)))

    x, pool = unseen[0][:20], unseen[0]
    found = QUICK(Oracle(noise, "features"), noise(x), images=learnt[0]).x
    assert int(identified(found, torch.arange(20), pool).sum()) <= 1
    mean = learnt[0].mean(0).expand_as(x)
    assert float(psnr(found, x).median()) < float(psnr(mean, x).median()) + 0.5


def test_rows_of_a_real_encoder_are_told_from_each_other(encoder: nn.Module, learnt: Rows, unseen: Rows) -> None:
    x = unseen[0][:40]
    found = QUICK(Oracle(encoder, "features"), embedded(encoder, x), images=learnt[0]).x
    places, mean = torch.arange(40), learnt[0].mean(0).expand_as(x)
    own, others = (int(identified(one, places, unseen[0]).sum()) for one in (found, found.roll(1, 0)))
    assert own > others + 3
    assert float(psnr(found, x).median()) > float(psnr(mean, x).median()) + 2


def test_what_makes_no_sense_is_refused(learnt: Rows) -> None:
    oracle = Oracle(nn.Flatten(), "features")
    with pytest.raises(ValueError, match="expected features"):
        decoder(oracle, torch.zeros(2, 5), images=learnt[0])
    with pytest.raises(ValueError, match="expected two images"):
        decoder(oracle, torch.zeros(2, 64), images=learnt[0][:1])
