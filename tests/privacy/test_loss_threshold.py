"""The loss threshold is the cross-entropy in another guise, and finds what was learnt by heart."""

from __future__ import annotations

import pytest
import torch
from membership_worlds import by_heart, net, noise
from torch.nn import functional as F

from buckler import stats
from buckler.privacy.loss_threshold import loss_threshold
from buckler.target import Oracle
from buckler.train import started


def test_rows_are_ordered_by_their_loss() -> None:
    (x, y), model = noise(100), started(net, 0).eval()
    scores = loss_threshold(Oracle(model), x, y)
    losses = F.cross_entropy(model(x).double(), y, reduction="none")
    assert torch.equal(scores.argsort(), (-losses).argsort())
    right = (-losses).exp()
    assert torch.allclose(scores, right.log() - (1 - right).log(), atol=1e-5)


def test_nearly_sure_answers_are_still_told_apart() -> None:
    logits = torch.tensor([[30.0, 0.0], [35.0, 0.0], [-60.0, 0.0], [200.0, 0.0]])
    x, y = torch.arange(4.0)[:, None], torch.zeros(4, dtype=torch.long)
    scores = loss_threshold(Oracle(lambda rows: logits.softmax(1)[rows[:, 0].long()]), x, y)
    assert scores[:3].tolist() == pytest.approx([30, 35, -60], abs=1e-3)
    assert bool(scores.isfinite().all())
    assert float(scores[1]) > float(scores[0]) > 0 > float(scores[2])


def test_a_model_that_learnt_by_heart_gives_its_rows_away_and_an_untrained_one_does_not() -> None:
    (x, y), (u, v) = noise(100), noise(400, seed=1)
    everything, labels = torch.cat([x, u]), torch.cat([y, v])
    member = (torch.arange(500) < 100).double()
    for model, low, high in ((by_heart((x, y)), 0.85, 1.0), (started(net, 3).eval(), 0.35, 0.65)):
        scores = loss_threshold(Oracle(model), everything, labels)
        area = stats.area(torch.stack([scores, member], 1), "r")
        assert low <= area.value <= high
        assert (area.low > 0.5) is (low > 0.5)
