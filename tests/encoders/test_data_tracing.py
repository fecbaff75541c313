"""Data tracing: p-values over many divisions of images that an encoder never saw, and of images that it remembers."""

from __future__ import annotations

import pytest
import torch
from remembering_worlds import Remembering, images, rows, uniform
from torch import nn

from buckler.data import Rows
from buckler.encoders.data_tracing import data_tracing
from buckler.target import Oracle


def divided(data: Rows, seed: int) -> tuple[Rows, Rows]:
    order = torch.randperm(len(data[1]), generator=torch.Generator().manual_seed(seed))
    a, b = order.chunk(2)
    return (data[0][a], data[1][a]), (data[0][b], data[1][b])


@pytest.mark.parametrize("reference", [None, Remembering(images(30, 8), 8)])
def test_p_values_are_uniform_for_an_encoder_that_saw_nothing(reference: nn.Module | None) -> None:
    """Over divisions by chance of the same images, shown in the same views."""
    suspect, data = Remembering(images(30, 7), 7), rows(40)
    p = [
        data_tracing(published, unseen=kept, reference=reference, asked=2, seed=0).claim(suspect).p
        for published, kept in (divided(data, seed) for seed in range(60))
    ]
    assert uniform(p) > 0.01
    assert min(p) > 1e-4


def test_even_one_that_remembers_all_images_is_not_claimed() -> None:
    """Who learnt from both parts alike does not depend on the division."""
    data = rows(40)
    suspect = Remembering(data[0])
    p = [
        data_tracing(published, unseen=kept, asked=2).claim(suspect).p
        for published, kept in (divided(data, seed) for seed in range(60))
    ]
    assert uniform(p) > 0.01


def test_who_learnt_from_the_images_is_claimed_and_more_surely_with_a_reference() -> None:
    published, kept = divided(rows(60), 0)
    weak = Remembering(published[0], strength=3.0)
    plain, sure = (
        data_tracing(published, unseen=kept, reference=reference).claim(weak).p
        for reference in (None, Remembering(images(30, 8), 8, strength=0.0))
    )
    assert sure == 1e-4
    assert plain < 0.05
    assert data_tracing(kept, unseen=published).claim(weak).p > 0.9


@pytest.mark.parametrize("many", [60, 24])
def test_an_oracle_is_enough_and_pays(many: int) -> None:
    published, kept = divided(rows(many), 0)
    model = Remembering(published[0])
    oracle = Oracle(model, "features")
    claims = [data_tracing(published, unseen=kept).claim(one) for one in (model, oracle)]
    assert claims[0] == claims[1]
    assert claims[1].queries == oracle.asked


def test_too_few_images_are_said() -> None:
    with pytest.raises(ValueError, match="eight images of either part or more, got 7 and 20"):
        data_tracing(rows(7), unseen=rows(20))
    with pytest.raises(ValueError, match="needs features"):
        data_tracing(rows(8), unseen=rows(8, 1)).claim(Oracle(Remembering(images(4)), "labels"))
