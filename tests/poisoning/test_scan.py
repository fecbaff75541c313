"""SCAn against a naive expectation maximisation, a likelihood ratio, planted groups and stamped digits."""

from __future__ import annotations

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

from buckler.data import digits
from buckler.poisoning.scan import FLOOR, _variation, scan


def naive_covariances(rows: np.ndarray, y: np.ndarray, steps: int) -> tuple[np.ndarray, np.ndarray]:
    """Row by row, with the inverses that the paper writes down; the first covariance with its floor."""
    labels = np.unique(y)
    means = {label: rows[y == label].mean(0) for label in labels}
    within = sum(np.outer(r - means[c], r - means[c]) for r, c in zip(rows, y, strict=True)) / len(rows)
    between = sum(np.outer(means[c], means[c]) for c in y) / len(rows)
    for _ in range(steps):
        identities = {}
        for label in labels:
            own = rows[y == label]
            inverse = np.linalg.inv(len(own) * between + floored(within))
            identities[label] = len(own) * between @ inverse @ own.mean(0)
        within = sum(np.outer(r - identities[c], r - identities[c]) for r, c in zip(rows, y, strict=True)) / len(rows)
        between = sum(np.outer(identities[c], identities[c]) for c in y) / len(rows)
    return floored(within), between


def floored(within: np.ndarray) -> np.ndarray:
    return within + FLOOR * np.trace(within) / len(within) * np.eye(len(within))


def test_the_map_makes_the_naive_covariances_the_identity_and_a_diagonal() -> None:
    x, y, _ = planted(0.0, classes=8, rows=60, wide=4, seed=3)
    rows = x.flatten(1).double()
    rows = rows - rows.mean(0)
    basis, strength = _variation(rows, y)
    within, between = naive_covariances(rows.numpy(), y.numpy(), 30)
    chart = basis.numpy()
    assert np.allclose(chart.T @ within @ chart, np.eye(4), atol=1e-4)
    assert np.allclose(chart.T @ between @ chart, np.diag(strength.numpy()), atol=1e-4 * float(strength.max()))


def test_directions_in_which_nothing_varies_are_left_out() -> None:
    x, y, bad = planted(0.2)
    dead = torch.cat([x, torch.full_like(x, 0.25), x[..., :3]], 3)  # constant and repeated features
    found, usual = scan(reader(27, 6), (dead, y)), scan(reader(12, 6), (x, y))
    assert found.flagged.equal(usual.flagged)
    assert recall(found, bad) > 0.95


def test_the_score_is_the_log_of_a_likelihood_ratio() -> None:
    x, y, bad = planted(0.25, apart=10.0)
    found = scan(reader(12, 6), (x, y), clean=planted(0.0, seed=0)[:2])
    assert found.flagged.equal(bad)
    own = y == 2
    rows = x[own].flatten(1).double() * 80  # the variation is the identity here, up to sampling
    odd, usual = rows[bad[own]].mean(0), rows[~bad[own]].mean(0)
    ratio = ((rows - usual).square().sum(1) - (rows - odd).square().sum(1)) / 2
    assert torch.cosine_similarity(ratio, found.score[own].double(), 0) > 0.98, "up to the weight of the class"


@pytest.mark.parametrize("share", [0.05, 0.2, 0.4])
def test_a_planted_group_is_found_without_clean_rows(share) -> None:
    x, y, bad = planted(share, apart=10.0)
    found = scan(reader(12, 6), (x, y))
    assert recall(found, bad) > 0.95
    assert false_alarms(found, bad) < 0.01
    assert ranking(found.score, bad) > 0.98


def test_with_clean_rows_even_the_larger_group_of_a_class_is_known() -> None:
    x, y, bad = planted(0.65, apart=10.0)
    clean = planted(0.0, rows=30, seed=0)
    centres = [x[(y == label) & ~bad].mean(0) for label in range(6)]
    held = torch.stack([centres[int(label)] for label in clean[1]])
    held = held + torch.randn(held.shape, generator=torch.Generator().manual_seed(1)) / 80
    assert recall(scan(reader(12, 6), (x, y), clean=(held, clean[1])), bad) > 0.95
    assert recall(scan(reader(12, 6), (x, y)), bad) < 0.05, "without, the smaller group is taken"


def test_clean_data_is_hardly_flagged() -> None:
    assert float(scan(*clean_digits()).flagged.float().mean()) < 0.02
    alarms = [float(scan(reader(12, 6), planted(0.0, seed=seed)[:2]).flagged.float().mean()) for seed in range(10)]
    assert sum(alarms) / len(alarms) < 0.02, alarms


@pytest.mark.parametrize("held", [False, True], ids=["no clean rows", "clean rows"])
def test_stamped_digits_are_found(held) -> None:
    model, poisoned = stamped_digits()
    found = scan(model, poisoned.seen, clean=digits(train=False) if held else None)
    assert ranking(found.score, poisoned.rows) > 0.9
    assert recall(found, poisoned.rows) > 0.8 or not held  # without clean rows the class does not stand out far enough
    assert false_alarms(found, poisoned.rows) < 0.05


def test_the_order_of_the_rows_does_not_matter() -> None:
    model, poisoned = stamped_digits()
    same_whatever_the_order(lambda data: scan(model, data), poisoned.seen, close=1e-2)


def test_bad_input_is_one_sentence() -> None:
    refuses_one_class(lambda data: scan(reader(12, 2), data))
    x, y, _ = planted(0.2, rows=10)
    with pytest.raises(ValueError, match="at least three classes"):
        scan(reader(12, 6), (x[y < 2], y[y < 2]))
    with pytest.raises(ValueError, match="got none of class 4"):
        scan(reader(12, 6), (x, y), clean=(x[y != 4], y[y != 4]))
    with pytest.raises(ValueError, match="expected a model with a linear layer"):
        scan(torch.nn.Flatten(), (x, y))
