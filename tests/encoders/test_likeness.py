"""Likeness: against a naive correlation, the null where it is normal, and copies that are turned."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from stealing_worlds import deep, never_too_small, random_encoder, rows
from torch import nn

from buckler.data import Rows
from buckler.encoders.likeness import _alike, likeness
from buckler.encoders.stolen_encoder import stolen_encoder
from buckler.target import Oracle


def references(_: Rows, draw: int) -> nn.Module:
    return random_encoder(100 + draw, 60)


def test_correlations_are_what_numpy_says() -> None:
    a, b = (torch.randn(8, 5, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1))
    said = []
    for f in (a, b):
        near = (f - f.mean(0)).numpy().astype(float)
        near /= np.linalg.norm(near, axis=1, keepdims=True)
        said.append([near[i] @ near[j] for i in range(8) for j in range(i + 1, 8)])
    assert float(_alike(a) @ _alike(b)) == pytest.approx(np.corrcoef(*said)[0, 1], abs=1e-5)


def test_p_values_of_encoders_made_alike_are_never_too_small() -> None:
    """Over owners: each draws its encoder and its references in one way, and a suspect is drawn by itself."""
    data, found = rows(60), list[float]()
    for owner in range(80):

        def training(_: Rows, draw: int, owner: int = owner) -> nn.Module:
            return random_encoder(1000 + 10 * owner + draw, 60)

        made = likeness(random_encoder(5000 + owner, 60), data, training=training, most=40)
        found.append(made.claim(random_encoder(9000 + owner, 60)).p)
    never_too_small(torch.tensor(found))


def test_copies_are_claimed_however_they_are_turned_and_others_are_not() -> None:
    model, data = random_encoder(0, 60), rows(100)
    made = likeness(model, data, training=references)
    assert made.claim(model).p < 1e-3
    assert made.claim(model).queries == 100
    turn = torch.linalg.qr(torch.randn(60, 60, generator=torch.Generator().manual_seed(0))).Q
    last = nn.Linear(60, 60, bias=False)
    last.weight = nn.Parameter(turn)
    assert made.claim(nn.Sequential(model, last)).p < 1e-3
    copy = stolen_encoder(Oracle(model, "features"), rows(200, 5)[0], net=lambda: deep(60), epochs=40, rate=0.1)
    assert made.claim(copy).p < 0.01
    assert min(made.claim(random_encoder(seed, 60)).p for seed in range(1, 6)) > 0.01


def test_too_few_references_are_said() -> None:
    with pytest.raises(ValueError, match="three references and four rows or more, got 2 and 9"):
        likeness(random_encoder(0), rows(9), training=references, references=2)
