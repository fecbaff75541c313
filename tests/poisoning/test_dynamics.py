"""What is remembered of every row, against loops, and the losses of early training in closed form."""

from __future__ import annotations

import math

import pytest
import torch
from cultivate_problems import few, net
from torch import Tensor, nn

from buckler.nets import ResNet
from buckler.poisoning._dynamics import Watched, flooded, gradient_ascent, numbered, plain
from buckler.poisoning._isolate import highest, isolated
from buckler.poisoning._look import losses
from buckler.train import constant, fit, started


class Fixed(nn.Module):
    """Answers whatever it was given, row by row."""

    def forward(self, x: Tensor) -> Tensor:
        return x


def test_rows_are_remembered_one_by_one() -> None:
    torch.manual_seed(0)
    logits, y = torch.randn(6, 3), torch.tensor([0, 1, 2, 0, 1, 2])
    watched = Watched(y)
    order = torch.tensor([4, 0, 2, 5, 1, 3])
    for rows in order.split(2):
        assert torch.allclose(watched(Fixed(), logits[rows], rows), plain(logits[rows], y[rows]))
    for row in range(6):
        powers = [math.exp(float(v)) for v in logits[row]]
        said = powers[int(y[row])] / sum(powers)
        assert float(watched.record["loss"][0, row]) == pytest.approx(-math.log(said), rel=1e-4)
        assert float(watched.record["confidence"][0, row]) == pytest.approx(said, rel=1e-4)
        assert bool(watched.record["agreement"][0, row]) == (max(powers) == powers[int(y[row])])
    assert watched.record["loss"].shape == (1, 6)


def test_an_epoch_ends_when_a_row_comes_again_and_rows_not_seen_are_nan() -> None:
    watched = Watched(torch.zeros(4, dtype=torch.long))
    logits = torch.zeros(2, 2)
    for rows in ([0, 1], [2, 3], [3, 0], [1, 2], [2, 0]):
        watched(Fixed(), logits, torch.tensor(rows))
    assert watched.record["loss"].isnan().tolist() == [[False] * 4, [False] * 4, [False, True, False, True]]


def test_nothing_seen_is_no_record() -> None:
    assert Watched(torch.zeros(3, dtype=torch.long)).record == {}


def test_the_one_loop_leaves_one_line_per_epoch() -> None:
    x, y = few(50)
    model = started(lambda: ResNet(width=4, blocks=(1,)), 0)
    watched = Watched(y)
    fit(model, numbered(x), loss=watched, epochs=3, batch=16, rate=constant(0.01))
    assert watched.record["loss"].shape == (3, 50)
    assert watched.record["loss"].isfinite().all()


def test_numbers_stand_for_labels() -> None:
    x, y = few(40)
    same = fit(started(net, 0), numbered(x), loss=Watched(y), epochs=2, batch=16, rate=0.05)
    plainly = fit(started(net, 0), (x, y), epochs=2, batch=16, rate=0.05)
    assert all(torch.equal(a, b) for a, b in zip(same.parameters(), plainly.parameters(), strict=True))


def test_gradient_ascent_turns_row_by_row_and_flooding_batch_by_batch() -> None:
    logits = torch.tensor([[9.0, 0.0], [0.0, 0.2]], requires_grad=True)
    y = torch.tensor([0, 0])
    value = plain(logits, y)
    (own,) = torch.autograd.grad(value.sum(), logits, retain_graph=True)
    assert value[0] < 0.3 < value.mean() < 0.5 < value[1]
    for turned, expected, sign in (
        (gradient_ascent(0.5), torch.stack([-value[0], value[1]]), torch.tensor([[-1.0], [1.0]])),
        (flooded(0.5), (1 - value.mean()).expand(2), torch.tensor([[-1.0], [-1.0]])),
        (flooded(0.3), value.mean().expand(2), torch.tensor([[1.0], [1.0]])),
    ):
        loss = turned(logits, y)
        assert torch.allclose(loss, expected)
        (slope,) = torch.autograd.grad(loss.sum(), logits, retain_graph=True)
        assert torch.allclose(slope, own * sign)


def test_isolation_flags_the_rows_of_the_lowest_loss() -> None:
    x, y = few(100)
    model, suspicion, record = isolated((x, y), net, 0.1, plain, 1, 32, 0.05, 0)
    assert torch.equal(suspicion.score, -losses(model, (x, y)))
    assert torch.equal(suspicion.flagged, highest(suspicion.score, 10))
    assert int(suspicion.flagged.sum()) == 10
    assert suspicion.score[suspicion.flagged].min() >= suspicion.score[~suspicion.flagged].max()
    assert record["loss"].shape == (1, 100)
    for share in (0.0, 0.001, 1.0, 1.5):
        with pytest.raises(ValueError, match="expected a share to isolate that is 1 to 99 rows"):
            isolated((x, y), net, share, plain, 1, 32, 0.05, 0)
