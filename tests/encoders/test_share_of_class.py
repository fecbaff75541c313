"""The share of a class, told from encoders made so that it shows, and from others where it does not."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from buckler.data import Rows
from buckler.encoders._summaries import Worlds, alike
from buckler.encoders.share_of_class import share_of_class
from buckler.target import Oracle

SHARES = (0.02, 0.25)


def answers(kind: int, seed: int, many: int = 12) -> Tensor:
    """Features of rows of which the first third lie together if `kind` is 1, with axes in any order."""
    draw = torch.Generator().manual_seed(seed)
    found = torch.randn(many, 6, generator=draw)
    if kind:
        found[: many // 3] = 0.2 * found[: many // 3] + 2 * torch.randn(6, generator=draw)
    return found @ torch.linalg.qr(torch.randn(6, 6, generator=draw)).Q


def told(of: int, x: Tensor, *, kinds: bool = True) -> float:
    which = torch.arange(40) % 2
    seen = torch.stack([alike(answers(int(kind) * kinds, seed)) for seed, kind in enumerate(which)])
    worlds = Worlds(seen, which, 0, SHARES)
    right = 0
    for seed in range(of):
        own = answers((seed % 2) * kinds, 1000 + seed)
        scores = share_of_class(Oracle(lambda _, own=own: own, "features"), x, worlds=worlds)["share"]
        assert scores.shape == (2,)
        right += int(scores.argmax()) == seed % 2
    return right / of


def test_what_shows_is_told_and_what_does_not_is_not(unseen: Rows) -> None:
    x = unseen[0][:12]
    assert told(20, x) >= 0.9
    assert 0.2 <= told(20, x, kinds=False) <= 0.8


def test_how_alike_features_are_is_the_same_whatever_their_axes() -> None:
    one = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))
    turned = one @ torch.linalg.qr(torch.randn(4, 4, generator=torch.Generator().manual_seed(1))).Q
    assert torch.allclose(alike(one), alike(3 * turned), atol=1e-5)
    naive = [float(torch.cosine_similarity(one[i], one[j], dim=0)) for i in range(5) for j in range(i + 1, 5)]
    assert torch.allclose(alike(one), torch.tensor(naive), atol=1e-6)


def test_encoders_of_another_question_are_refused(unseen: Rows) -> None:
    worlds = Worlds(torch.zeros(2, 66), torch.arange(2), 0, SHARES)
    oracle = Oracle(lambda x: x.flatten(1), "features")
    with pytest.raises(ValueError, match="expected encoders of class 1"):
        share_of_class(oracle, unseen[0][:12], worlds=worlds, label=1)
    with pytest.raises(ValueError, match="expected answers to these 5 rows"):
        share_of_class(oracle, unseen[0][:5], worlds=worlds)
