"""Label errors against flipped labels, folds that never see what they judge, and what cleanlab says of the same."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch
from sift_problems import (
    clean_digits,
    false_alarms,
    planted,
    ranking,
    recall,
    refuses_one_class,
    same_whatever_the_order,
)
from torch import Tensor, nn

from buckler.data import Rows
from buckler.nets import SmallCNN
from buckler.poisoning.label_errors import label_errors


def small() -> nn.Module:
    return SmallCNN(width=4)


def flat() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(12, 6))


def flipped(share: float, many: int = 700) -> tuple[Rows, Tensor]:
    """Digits of which a share has another label than its own."""
    _, (x, y) = clean_digits()
    x, y = x[:many], y[:many].clone()
    generator = torch.Generator().manual_seed(1)
    bad = torch.rand(many, generator=generator) < share
    y[bad] = (y[bad] + torch.randint(1, 10, (int(bad.sum()),), generator=generator)) % 10
    return (x, y), bad


def test_flipped_labels_are_found() -> None:
    pytest.importorskip("cleanlab")
    data, bad = flipped(0.15)
    found = label_errors(data, net=small, folds=3, epochs=12, batch=64)
    assert ranking(found.score, bad) > 0.95
    assert recall(found, bad) > 0.7
    assert false_alarms(found, bad) < 0.1


def test_true_labels_are_hardly_flagged() -> None:
    pytest.importorskip("cleanlab")
    data, bad = flipped(0.0)
    assert false_alarms(label_errors(data, net=small, folds=3, epochs=12, batch=64), bad) < 0.08


def test_flags_are_what_cleanlab_makes_of_the_answers_and_scores_are_their_rest(monkeypatch) -> None:
    """Whatever the finder is given are answers to rows that the network was not trained on."""
    seen: list[tuple[np.ndarray, np.ndarray]] = []

    def finder(labels: np.ndarray, said: np.ndarray, *, filter_by: str, n_jobs: int) -> np.ndarray:
        assert (filter_by, n_jobs) == ("prune_both", 1)
        seen.append((labels, said))
        return said.argmax(1) != labels

    monkeypatch.setattr("buckler.poisoning.label_errors._finder", lambda: finder)
    # a label that only memory can know: every row is its own one-hot, and so says nothing of any other row
    x, y = torch.eye(60)[:, None, None], torch.arange(60) % 3

    def net() -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.Linear(60, 3))

    found = label_errors((x, y), net=net, folds=4, prune="both", epochs=30, batch=16, rate=1.0)
    labels, said = seen[0]
    assert sorted(labels.tolist()) == sorted(y.tolist())
    assert np.allclose(said.sum(1), 1, atol=1e-5)
    assert 0.1 < float((found.flagged.float()).mean()) < 1.0
    assert float(found.score.mean()) > 0.5, "a network that had seen a row would be sure of it"


def test_labels_that_do_not_occur_are_no_matter() -> None:
    pytest.importorskip("cleanlab")
    x, y, _ = planted(0.0, rows=30)
    kept = (y != 1) & (y != 3)
    found = label_errors((x[kept], y[kept]), net=flat, folds=3, epochs=20, batch=32, rate=1.0)
    assert found.score.shape == (120,)
    assert bool(((found.score >= 0) & (found.score <= 1)).all())


def test_the_order_of_the_rows_does_not_matter() -> None:
    pytest.importorskip("cleanlab")
    x, y, _ = planted(0.2, rows=40)
    same_whatever_the_order(lambda data: label_errors(data, net=flat, folds=3, epochs=5, batch=32), (x, y))


def test_the_given_data_and_the_random_state_stay_as_they_are(monkeypatch) -> None:
    monkeypatch.setattr("buckler.poisoning.label_errors._finder", lambda: lambda labels, said, **_: labels < 0)
    x, y, _ = planted(0.2, rows=20)
    kept, state = (x.clone(), y.clone()), torch.random.get_rng_state()
    label_errors((x, y), net=flat, folds=2, epochs=1)
    assert torch.equal(x, kept[0])
    assert torch.equal(y, kept[1])
    assert torch.equal(torch.random.get_rng_state(), state)


def test_without_cleanlab_it_says_what_to_install(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "cleanlab", None)
    monkeypatch.setitem(sys.modules, "cleanlab.filter", None)
    x, y, _ = planted(0.2, rows=10)
    with pytest.raises(ValueError, match="pip install cleanlab"):
        label_errors((x, y), net=flat)


def test_bad_input_is_one_sentence(monkeypatch) -> None:
    monkeypatch.setattr("buckler.poisoning.label_errors._finder", lambda: None)
    refuses_one_class(lambda data: label_errors(data, net=flat))
    x, y, _ = planted(0.2, rows=10)
    with pytest.raises(ValueError, match="at least 2 folds"):
        label_errors((x, y), net=flat, folds=1)
    with pytest.raises(ValueError, match="at least 11 rows of every class, got 10 of class 0"):
        label_errors((x, y), net=flat, folds=11)
    with pytest.raises(ValueError, match="expected a function that returns an untrained"):
        label_errors((x, y), net=lambda: "a network", folds=2)
