"""Fingerprints: what transfer does to a naive null, and ranks among references."""

from __future__ import annotations

import pytest
import torch
from owned_worlds import CLASSES, blobs, drawn_by_chance, never_too_small, p_values, taught

from buckler.claims import binomial_tail
from buckler.kinds import Owned
from buckler.theft.fingerprint import _beyond, fingerprint


def test_p_values_are_never_too_small_for_a_fixed_model() -> None:
    """Whatever the suspect, where the model is one more draw of the training that makes the references."""
    data = blobs(40)

    def keyed(seed: int) -> Owned:
        model = drawn_by_chance(None, 10_000 + seed)
        return fingerprint(model, data, training=drawn_by_chance, references=4, points=10, steps=3, seed=seed)

    never_too_small(p_values(keyed, drawn_by_chance(None, 7), 150))


def test_a_binomial_tail_would_accuse_independent_models() -> None:
    """Points that are moved to a class drawn by chance are often moved there for another model as well."""
    data = blobs(200)
    model, far = taught(data, 0), torch.rand(100, generator=torch.Generator().manual_seed(1))
    moved, goal = _beyond(model, data[0][:100], far, 1.0, 0.3, 30)
    others = [taught(blobs(200, seed=seed), seed) for seed in (5, 6, 7)]
    naive = [binomial_tail(int((other(moved).argmax(1) == goal).sum()), 100, 1 / (CLASSES - 1)) for other in others]
    assert max(naive) < 0.01


def test_the_owner_s_model_is_first_and_independent_ones_are_not() -> None:
    data = blobs(200, noise=0.3)
    model = taught(data, 0)
    made = fingerprint(model, data, training=taught, references=9, margin=0.2)
    assert made.claim(model).p == 1 / 10
    assert made.claim(model).queries == 10 * 40
    assert made.claim(taught(data, 77)).p > 0.1
    assert made.claim(taught(blobs(200, seed=5), 5)).p > 0.1


def test_what_cannot_be_told_is_said() -> None:
    with pytest.raises(ValueError, match="references and steps of 1 or more"):
        fingerprint(drawn_by_chance(None, 1), blobs(9), training=drawn_by_chance, references=0)
