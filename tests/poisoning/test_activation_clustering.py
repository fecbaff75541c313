"""Activation clustering against scikit-learn's ICA, k-means and silhouette, planted groups and stamped digits."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from sift_problems import (
    clean_digits,
    false_alarms,
    planted,
    ranking,
    reader,
    recall,
    refuses_one_class,
    same_whatever_the_order,
    stamped_digits,
)
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA, FastICA
from sklearn.metrics import silhouette_score

from buckler.poisoning._groups import halves, principal
from buckler.poisoning._look import features
from buckler.poisoning.activation_clustering import activation_clustering


@pytest.mark.parametrize("label", [0, 1, 4, 8])
@pytest.mark.parametrize("reduce", ["independent", "principal"])
def test_it_is_what_scikit_learn_makes_of_a_class(label, reduce) -> None:
    """FastICA really rotates; the clusters and silhouettes are the same as without."""
    model, poisoned = stamped_digits()
    own = poisoned.y == label
    seen = features(model, (poisoned.x[own], poisoned.y[own])).double().numpy()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        reducer = FastICA(10, whiten="unit-variance", random_state=0) if reduce == "independent" else PCA(10)
        reduced = reducer.fit_transform(seen)
    theirs = KMeans(2, n_init=30, random_state=0).fit(reduced)
    small = theirs.labels_ == np.bincount(theirs.labels_).argmin()
    mine = halves(_reduced(torch.from_numpy(seen), reduce)).small.numpy()
    assert _inertia(reduced, mine) <= theirs.inertia_ * 1.005, "as good a split as the best of thirty"
    found = activation_clustering(model, poisoned.seen, reduce=reduce).score[own].numpy()
    if (mine == small).all():
        centre, other = reduced[small].mean(0), reduced[~small].mean(0)
        nearer = ((reduced - other) ** 2).sum(1) - ((reduced - centre) ** 2).sum(1)
        assert np.allclose(found, nearer * silhouette_score(reduced, small), rtol=1e-3, atol=1e-3 * np.abs(found).max())


def _reduced(seen: torch.Tensor, reduce: str) -> torch.Tensor:
    along = principal(seen, 10)
    return along / along.std(0, correction=0) if reduce == "independent" else along


def _inertia(rows: np.ndarray, small: np.ndarray) -> float:
    return float(sum(((rows[part] - rows[part].mean(0)) ** 2).sum() for part in (small, ~small)))


@pytest.mark.parametrize("share", [0.1, 0.3])
@pytest.mark.parametrize("reduce", ["independent", "principal"])
def test_a_planted_group_is_found_whole(share, reduce) -> None:
    x, y, bad = planted(share, apart=12.0)
    found = activation_clustering(reader(12, 6), (x, y), reduce=reduce, components=4)
    assert found.flagged.equal(bad)
    assert ranking(found.score, bad) > 0.97


def test_a_planted_half_is_not_flagged_for_its_size_and_a_cloud_not_for_its_silhouette() -> None:
    x, y, bad = planted(0.45, apart=12.0)
    assert not activation_clustering(reader(12, 6), (x, y), reduce="principal").flagged.any()
    assert activation_clustering(reader(12, 6), (x, y), reduce="principal", size=0.5).flagged.equal(bad)
    x, y, _ = planted(0.0)
    assert not activation_clustering(reader(12, 6), (x, y), size=1.0).flagged.any()
    assert activation_clustering(reader(12, 6), (x, y), size=1.0, silhouette=-1.0).flagged.any()


def test_clean_digits_are_hardly_flagged() -> None:
    assert float(activation_clustering(*clean_digits()).flagged.float().mean()) < 0.05


def test_stamped_digits_are_found() -> None:
    model, poisoned = stamped_digits()
    found = activation_clustering(model, poisoned.seen)
    assert ranking(found.score, poisoned.rows) > 0.8
    assert recall(found, poisoned.rows) > 0.8
    assert false_alarms(found, poisoned.rows) < 0.08


def test_the_order_of_the_rows_does_not_matter() -> None:
    model, poisoned = stamped_digits()
    same_whatever_the_order(lambda data: activation_clustering(model, data), poisoned.seen, close=1e-3)


def test_classes_of_one_row_and_of_one_point_have_no_clusters() -> None:
    x = torch.rand(43, 1, 1, 12, generator=torch.Generator().manual_seed(0))
    y = torch.tensor([0] * 20 + [1] * 20 + [2] + [3] * 2)
    x[:20] = 0.5
    found = activation_clustering(reader(12, 4), (x, y))
    assert found.score.isfinite().all()
    assert (found.score[y == 0] == 0).all()
    assert not found.flagged[y != 1].any()


def test_bad_input_is_one_sentence() -> None:
    refuses_one_class(lambda data: activation_clustering(reader(12, 2), data))
    x, y, _ = planted(0.2, rows=10)
    with pytest.raises(ValueError, match="at least one component"):
        activation_clustering(reader(12, 6), (x, y), components=0)
    with pytest.raises(ValueError, match="expected a model with a linear layer"):
        activation_clustering(torch.nn.Flatten(), (x, y))
