"""The symmetric cross-entropy and the splits it makes, against loops over rows."""

from __future__ import annotations

import math

import pytest
import torch
from cultivate_problems import few, net

from buckler.poisoning._split import Splits, lowest, lowest_of_each, symmetric
from buckler.train import started


def test_symmetric_cross_entropy_row_by_row() -> None:
    torch.manual_seed(0)
    logits, y = torch.randn(20, 4), torch.randint(0, 4, (20,))
    got = symmetric(logits, y, alpha=0.3, beta=0.7, floor=1e-3)
    for row in range(20):
        powers = [math.exp(float(v)) for v in logits[row]]
        said = [power / sum(powers) for power in powers]
        forward = -math.log(said[int(y[row])])
        reverse = -sum(said[k] * math.log(1.0 if k == int(y[row]) else 1e-3) for k in range(4))
        assert float(got[row]) == pytest.approx(0.3 * forward + 0.7 * reverse, rel=1e-4)
    certain = torch.tensor([[50.0, 0.0]])
    assert float(symmetric(certain, torch.tensor([0]))) == pytest.approx(0, abs=1e-6)
    assert float(symmetric(certain, torch.tensor([1]))) == pytest.approx(0.1 * 50 + 4 * math.log(10), rel=1e-4)


def test_the_lowest_share() -> None:
    score = torch.tensor([5.0, 1.0, 4.0, 2.0, 3.0])
    assert lowest(score, 0.4).tolist() == [False, True, False, True, False]
    for share in (0.0, 0.1, 1.0, 2.0):
        with pytest.raises(ValueError, match="expected a share that is 1 to 4 rows"):
            lowest(score, share)


def test_the_lowest_of_each_class() -> None:
    score = torch.tensor([5.0, 1.0, 4.0, 2.0, 3.0, 0.0])
    y = torch.tensor([0, 0, 0, 3, 3, 7])
    assert lowest_of_each(score, y, 2).tolist() == [False, True, True, True, True, True]
    assert not lowest_of_each(score, y, 0).any()


def test_splits_remember_what_was_said_and_trusted() -> None:
    x, y = few(30)
    model = started(net, 0).train()
    splits = Splits(model, (x, y))
    score = splits.disagreement()
    with torch.no_grad():
        said = model.eval()(x)
    assert torch.allclose(score, symmetric(said, y), atol=1e-6)
    trusted = lowest(score, 0.5)
    assert splits.keep(score, trusted) is trusted
    splits.keep(splits.disagreement(), ~trusted)
    assert splits.dynamics["loss"].shape == splits.dynamics["trusted"].shape == (2, 30)
    assert torch.equal(splits.dynamics["trusted"][0] > 0, trusted)
    suspicion = splits.suspicion()
    assert torch.equal(suspicion.score, splits.score)
    assert torch.equal(suspicion.flagged, trusted & (said.argmax(1) != y)), "not trusted last, and contradicted"
