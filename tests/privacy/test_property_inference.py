"""A class's share in training: told where answers follow it, at chance where they do not, or where it is the same."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from buckler.data import mixed
from buckler.privacy._worlds import Worlds
from buckler.privacy.property_inference import property_inference
from buckler.stats import share
from buckler.target import Oracle

SHARES = (0.05, 0.2)
X = torch.arange(6.0)[:, None]


def answers(which: Tensor, gain: float, seed: int) -> Tensor:
    """Log-probabilities `(S, 6, 3)` of noise, in which class 0 is likelier by `gain` where the share is the larger."""
    draw = torch.Generator().manual_seed(seed)
    logits = torch.randn(len(which), 6, 3, generator=draw)
    logits[..., 0] += gain * which[:, None]
    return logits.log_softmax(2)


def told(gain: float, many: int = 100) -> Tensor:
    """Which of `many` targets are told, by as many shadow models."""
    which = torch.arange(many) % 2
    worlds = Worlds(answers(which, gain, 0), which, 0, SHARES)
    found = [property_inference(Oracle(lambda _, own=own: own.exp()), X, worlds=worlds)["share"]
             for own in answers(which, gain, 1)]  # fmt: skip
    return torch.stack(found).argmax(1) == which


def test_a_share_that_shows_is_told() -> None:
    assert float(told(3.0).double().mean()) > 0.95


def test_a_share_that_does_not_show_is_told_by_chance() -> None:
    estimate = share(told(0.0), "right", 0.999)
    assert estimate.low <= 0.5 <= estimate.high


def test_scores_are_log_probabilities() -> None:
    which = torch.arange(10) % 2
    worlds = Worlds(answers(which, 1.0, 0), which, 0, SHARES)
    found = property_inference(Oracle(lambda _: answers(which[:1], 1.0, 4)[0].exp()), X, worlds=worlds)["share"]
    assert float(found.exp().sum()) == pytest.approx(1)


def test_models_of_another_question_are_refused() -> None:
    which = torch.arange(4) % 2
    worlds = Worlds(answers(which, 1.0, 0), which, 1, SHARES)
    oracle = Oracle(lambda _: answers(which[:1], 1.0, 4)[0].exp())
    with pytest.raises(ValueError, match="expected models of class 0"):
        property_inference(oracle, X, worlds=worlds)
    with pytest.raises(ValueError, match="expected answers to these 3 rows"):
        property_inference(oracle, X[:3], worlds=worlds, label=1)


def test_every_model_has_the_share_that_is_said_and_as_many_rows() -> None:
    y = torch.randint(0, 5, (500,), generator=torch.Generator().manual_seed(0))
    held, which = mixed(y, 2, SHARES, 6, 0)
    sizes = held.sum(1)
    assert len(set(sizes.tolist())) == 1
    for model in range(6):
        own = y[held[model]]
        assert float((own == 2).double().mean()) == pytest.approx(SHARES[int(which[model])], abs=0.5 / int(sizes[0]))
    assert which.tolist() == [0, 1] * 3
    assert not torch.equal(held[0], held[2])


@pytest.mark.parametrize(
    ("label", "shares", "says"),
    [
        (9, SHARES, "rows enough for"),
        (0, (0.1,), "expected shares of 0 or more"),
        (0, (0.1, 1.0), "expected shares of 0 or more"),
    ],
)
def test_what_cannot_be_mixed_is_said(label: int, shares: tuple[float, ...], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        mixed(torch.arange(100) % 5, label, shares, 4, 0)
