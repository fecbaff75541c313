"""Beatrix against Gram matrices written out element by element, planted maps and stamped digits."""

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
from torch import Tensor, nn

from buckler.data import digits
from buckler.nets import ResNet, SmallCNN
from buckler.poisoning.beatrix import _deviation, _gram, _kernel_distance, _last_map, beatrix
from buckler.train import started


class Maps(nn.Module):
    """A model whose last map is its input, around zero."""

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.same = nn.Identity()
        self.head = started(lambda: nn.Linear(channels, classes), 0)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.same(x - 0.5).mean((2, 3)))


def maps(share: float, *, classes: int = 5, rows: int = 60, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Noise `(N, 4, 6, 6)` in which the channels of bad rows of class 1, and of these only, rise and fall together;
    every channel's mean and spread are the same in all rows."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.arange(classes).repeat_interleave(rows)
    noise = torch.randn(len(y), 4, 36, generator=generator)
    bad = torch.zeros(len(y), dtype=torch.bool)
    bad[(y == 1).nonzero().squeeze(1)[: round(share * rows)]] = True
    noise[bad] = noise[bad][:, :1].expand(-1, 4, -1)
    noise = (noise - noise.mean(2, keepdim=True)) / noise.std(2, keepdim=True)
    return (noise.view(-1, 4, 6, 6) / 20 + 0.5), y, bad


@pytest.mark.parametrize("order", [1, 3, 8])
def test_the_gram_matrix_is_that_of_powers_and_roots(order) -> None:
    values = torch.randn(2, 3, 5, generator=torch.Generator().manual_seed(0))
    found = _gram(values, order)
    for row in range(2):
        wanted = []
        for i in range(3):
            for j in range(i, 3):
                total = sum(float(values[row, i, p]) ** order * float(values[row, j, p]) ** order for p in range(5))
                wanted.append(np.sign(total) * abs(total) ** (1 / order))
        assert np.allclose(found[row].numpy(), wanted, rtol=1e-5)


def test_a_deviation_is_what_exceeds_ten_median_absolute_deviations() -> None:
    gram = torch.tensor([[9.0], [10.0], [11.0], [10.0], [30.0], [8.0], [12.0]])
    # the median is 10, the median absolute deviation 1: bounds of 0 and 20, of which a tenth of the level is added
    found = _deviation(gram, gram, 10.0)
    assert found.tolist() == pytest.approx([0, 0, 0, 0, 10 / 21, 0, 0])
    assert _deviation(gram, gram, 1.0).tolist() == pytest.approx([0, 0, 0, 0, 19 / 12, 1 / 10, 1 / 12])


def test_the_kernel_distance_is_that_of_all_pairs() -> None:
    rows = torch.randn(12, 3, generator=torch.Generator().manual_seed(0)).double()
    rows[8:] += 2
    score = torch.arange(12.0)
    squared = [[float((a - b).square().sum()) for b in rows] for a in rows]
    width = sorted(value for line in squared for value in line)[72]
    kernel = np.exp(-np.array(squared) / width) + np.exp(-np.array(squared) * 2 / width)
    wanted = kernel[8:, 8:].mean() + kernel[:8, :8].mean() - 2 * kernel[8:, :8].mean()
    assert float(_kernel_distance(rows, score, torch.tensor(7.5))) == pytest.approx(4 * 8 / 12 * wanted, rel=1e-5)
    assert float(_kernel_distance(rows, score, torch.tensor(99.0))) == 0


def test_the_last_map_is_found_in_any_network() -> None:
    image = torch.rand(1, 1, 8, 8)
    network, residual = SmallCNN(width=4), ResNet(width=4)
    assert _last_map(network, image) is network.second
    assert _last_map(residual, image) is residual.stages
    pooled = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2, 3))
    assert _last_map(pooled, image) is pooled[1]
    assert _last_map(nn.Sequential(nn.Flatten(), nn.Linear(64, 3)), image) is None
    assert not any(module._forward_hooks for module in residual.modules())


def test_channels_that_go_together_are_found_though_each_is_as_usual() -> None:
    x, y, bad = maps(0.2)
    found = beatrix(Maps(4, 5), (x, y), tolerance=3.0)
    assert ranking(found.score, bad) > 0.99
    noise = x.flatten(2)
    assert torch.allclose(noise.mean(2), torch.full((300, 4), 0.5), atol=1e-5)
    assert torch.allclose(noise.std(2), torch.full((300, 4), 0.05), atol=1e-5)


def test_a_network_without_maps_is_read_by_its_features() -> None:
    x, y, bad = planted(0.2, apart=20.0)
    found = beatrix(reader(12, 6), (x, y), tolerance=3.0)
    assert ranking(found.score, bad) > 0.95
    assert recall(found, bad) > 0.8
    assert false_alarms(found, bad) < 0.02


def test_clean_digits_are_hardly_flagged() -> None:
    model, data = clean_digits()
    assert float(beatrix(model, data).flagged.float().mean()) < 0.02
    assert float(beatrix(model, data, clean=digits(train=False)).flagged.float().mean()) < 0.02


def test_stamped_digits_are_found() -> None:
    model, poisoned = stamped_digits()
    found = beatrix(model, poisoned.seen, clean=digits(train=False))
    assert ranking(found.score, poisoned.rows) > 0.9
    assert recall(found, poisoned.rows) > 0.8
    assert ranking(beatrix(model, poisoned.seen).score, poisoned.rows) > 0.6, "harder without clean rows"
    assert false_alarms(found, poisoned.rows) < 0.05


def test_the_order_of_the_rows_does_not_matter_and_nothing_is_left_behind() -> None:
    model, poisoned = stamped_digits()
    same_whatever_the_order(lambda data: beatrix(model, data, orders=3), poisoned.seen, close=1e-3)
    assert not any(module._forward_hooks for module in model.modules())


def test_bad_input_is_one_sentence() -> None:
    refuses_one_class(lambda data: beatrix(reader(12, 2), data))
    x, y, _ = planted(0.2, rows=10)
    with pytest.raises(ValueError, match="at least three classes"):
        beatrix(reader(12, 6), (x[y < 2], y[y < 2]))
    with pytest.raises(ValueError, match="got none of class 4"):
        beatrix(reader(12, 6), (x, y), clean=(x[y != 4], y[y != 4]))
    with pytest.raises(ValueError, match="at least one order"):
        beatrix(reader(12, 6), (x, y), orders=0)
    with pytest.raises(ValueError, match="expected a model with a linear layer"):
        beatrix(nn.Flatten(), (x, y))
