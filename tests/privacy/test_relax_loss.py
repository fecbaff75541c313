"""RelaxLoss: the loss of members stays at its level, in the ways of the paper's algorithm."""

from __future__ import annotations

import math

import pytest
import torch
from membership_worlds import bright, net, noise
from torch import Tensor, nn
from torch.nn import functional as F

from buckler.privacy.relax_loss import _flattened, _relaxed, relax_loss
from buckler.train import fit, started


@pytest.mark.parametrize("level", [0.3, 0.8])
def test_the_loss_stays_at_its_level_where_a_plain_loop_takes_it_to_nothing(level: float) -> None:
    x, y = bright(200)
    plain = fit(started(net, 0), (x, y), epochs=40, batch=50)
    relaxed = relax_loss((x, y), net=net, level=level, epochs=40, batch=50).model
    with torch.no_grad():
        assert float(F.cross_entropy(plain(x), y)) < 0.1
        assert float(F.cross_entropy(relaxed(x), y)) == pytest.approx(level, rel=0.35)
        assert float((relaxed(x).argmax(1) == y).float().mean()) > 0.9


def test_below_its_level_it_climbs_in_even_epochs_and_flattens_in_odd_ones() -> None:
    model, (x, y) = started(net, 0).requires_grad_(False), noise(16)
    plain = F.cross_entropy(model(x), y, reduction="none")
    soft = _soft(model(x), y)
    low, high = float(plain.mean()) - 0.1, float(plain.mean()) + 0.1
    loss = _relaxed(high, 2)
    expected = [-plain, -plain, soft, soft, -plain]
    assert all(torch.allclose(loss(model, x, y), one) for one in expected)
    loss = _relaxed(low, 2)
    assert all(torch.allclose(loss(model, x, y), plain) for _ in range(4))


def _soft(out: Tensor, y: Tensor) -> Tensor:
    """Row after row."""
    found: list[Tensor] = []
    for row, label in zip(out.detach(), y, strict=True):
        p = row.softmax(0)
        target = torch.full_like(p, float(1 - p[label]) / (len(p) - 1))
        target[label] = p[label]
        found.append(-(target * row.log_softmax(0)).sum())
    return torch.stack(found)


def test_flattened_answers_are_probabilities_that_keep_the_label_s_own() -> None:
    out, y = torch.randn(9, 5), torch.arange(9) % 5
    flat = _flattened(out, y)
    assert torch.allclose(flat.sum(1), torch.ones(9))
    assert torch.allclose(flat.gather(1, y[:, None]), out.softmax(1).gather(1, y[:, None]))
    others = flat.masked_fill(F.one_hot(y, 5).bool(), torch.nan)
    assert all(float(row[row.isfinite()].std()) < 1e-6 for row in others)


def test_at_level_nought_it_is_the_plain_loop() -> None:
    data = noise(40)
    mine: nn.Module = relax_loss(data, net=net, level=0.0, epochs=2, seed=3).model
    plain = fit(started(net, 3), data, epochs=2, seed=3)
    assert all(torch.equal(a, b) for a, b in zip(mine.parameters(), plain.parameters(), strict=True))
    for level in (-1.0, math.nan, math.inf):
        with pytest.raises(ValueError, match="expected a level of 0 or more"):
            relax_loss(data, net=net, level=level)
