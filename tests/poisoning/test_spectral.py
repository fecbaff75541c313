"""Spectral signatures against the singular value decomposition of the paper, planted outliers and stamped digits."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sift_problems import (
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
from buckler.poisoning._look import features
from buckler.poisoning.spectral import spectral


@pytest.mark.parametrize("rows", [40, 8], ids=["more rows than features", "fewer"])
def test_the_score_is_the_square_of_the_first_singular_direction_of_the_centred_class(rows) -> None:
    x, y, _ = planted(0.2, rows=rows)
    model = reader(12, 6)
    found = spectral(model, (x, y))
    for label in range(6):
        own = x[y == label].flatten(1).double().numpy()
        centred = own - own.mean(0)
        _, _, right = np.linalg.svd(centred, full_matrices=False)
        assert np.allclose(found.score[y == label].numpy(), (centred @ right[0]) ** 2, rtol=1e-4, atol=1e-9)


def test_the_mean_of_a_class_is_taken_off_first() -> None:
    """Uncentred, the direction would be that of the class's mean, and the outliers on the other axis would be lost."""
    spread = torch.randn(60, generator=torch.Generator().manual_seed(0)) * 1e-3
    x = torch.stack([0.9 + spread, torch.full((60,), 0.1)], 1)
    x[:6, 1] = 0.2
    x, y = x[:, None, None].repeat(2, 1, 1, 1), torch.arange(2).repeat_interleave(60)
    found = spectral(reader(2, 2), (x, y), expected=6 / 120)
    assert set(found.score[:60].topk(6).indices.tolist()) == set(range(6))


def test_as_published_every_class_loses_its_highest_scores() -> None:
    x, y, _ = planted(0.2, rows=40)
    found = spectral(reader(12, 6), (x, y), expected=0.025, each_class=True)
    for label in range(6):
        own = y == label
        assert int(found.flagged[own].sum()) == 9  # 1.5 * 0.025 * 240
        assert found.score[own][found.flagged[own]].min() >= found.score[own][~found.flagged[own]].max()
    assert int(spectral(reader(12, 6), (x, y), expected=0.5, each_class=True).flagged.sum()) == 6 * 20, "half at most"


def test_by_default_the_classes_share_what_is_flagged_and_none_loses_more_than_half() -> None:
    x, y, bad = planted(0.25)
    found = spectral(reader(12, 6), (x, y), expected=30 / 720)
    assert int(found.flagged.sum()) == 45
    assert recall(found, bad) == 1
    greedy = spectral(reader(12, 6), (x, y), expected=0.9)
    assert all(int(greedy.flagged[y == label].sum()) == 60 for label in range(6))


@pytest.mark.parametrize("share", [0.1, 0.35])
def test_planted_rows_rank_first(share) -> None:
    x, y, bad = planted(share)
    assert ranking(spectral(reader(12, 6), (x, y)).score, bad) > 0.99


def test_clean_data_loses_what_is_expected_and_no_more() -> None:
    x, y, _ = planted(0.0)
    assert int(spectral(reader(12, 6), (x, y), expected=0.05).flagged.sum()) == 54  # 1.5 * 0.05 * 720


def test_stamped_digits_are_found() -> None:
    model, poisoned = stamped_digits()
    found = spectral(model, poisoned.seen)
    assert ranking(found.score, poisoned.rows) > 0.7
    assert recall(found, poisoned.rows) > 4 * false_alarms(found, poisoned.rows)


def test_the_order_of_the_rows_does_not_matter_and_nothing_is_changed() -> None:
    model, poisoned = stamped_digits()
    model.train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    same_whatever_the_order(lambda data: spectral(model, data), poisoned.seen)
    assert model.training
    model.eval()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert features(model, poisoned.seen).shape == (1197, 32)


def test_bytes_are_the_same_as_floats() -> None:
    model, (x, y) = stamped_digits()[0], digits(train=True)
    held = (x[:300] * 255).round().to(torch.uint8)
    scores = [spectral(model, (rows, y[:300])).score for rows in (held, held.float() / 255)]
    assert torch.allclose(*scores)


def test_bad_input_is_one_sentence() -> None:
    refuses_one_class(lambda data: spectral(reader(12, 2), data))
    x, y, _ = planted(0.2, rows=10)
    for share in (0.0, 1.0, 0.001):
        with pytest.raises(ValueError, match="expected a share of poisoned rows"):
            spectral(reader(12, 6), (x, y), expected=share)
    with pytest.raises(ValueError, match="expected a model with a linear layer"):
        spectral(torch.nn.Flatten(), (x, y))
