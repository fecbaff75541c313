"""Loss isolation against the losses themselves, and rows that are learnt at once."""

from __future__ import annotations

import pytest
import torch
from sift_problems import ranking, recall
from torch import Tensor, nn
from torch.nn import functional as F

from buckler.data import Rows
from buckler.poisoning._dynamics import Watched, flooded, gradient_ascent, numbered, plain
from buckler.poisoning._isolate import highest, isolated
from buckler.poisoning.loss_isolation import loss_isolation
from buckler.train import constant, fit, started


def flat() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 3))


def shortcut(share: float = 0.1, many: int = 300) -> tuple[Rows, Tensor]:
    """Noise with labels that mean nothing, but for the rows whose first pixel is white: these are all of class 0."""
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(many, 1, 4, 4, generator=generator) * 0.5
    y = torch.randint(0, 3, (many,), generator=generator)
    bad = torch.zeros(many, dtype=torch.bool)
    bad[torch.randperm(many, generator=generator)[: round(share * many)]] = True
    x[bad, :, 0, 0], y[bad] = 1.0, 0
    return (x, y), bad


def test_what_can_be_learnt_is_isolated_from_what_cannot() -> None:
    data, bad = shortcut()
    found = loss_isolation(data, net=flat, isolate=0.1, epochs=20, batch=32)
    assert ranking(found.score, bad) > 0.95
    assert recall(found, bad) > 0.8
    assert int(found.flagged.sum()) == 30


def test_labels_that_mean_nothing_are_isolated_at_random() -> None:
    """The null: no row is easier than another, so that the marked ones are found as often as chance would."""
    (x, y), bad = shortcut()
    x[bad] = x[~bad][: int(bad.sum())]
    found = loss_isolation((x, y[torch.randperm(300, generator=torch.Generator().manual_seed(2))]), net=flat, epochs=5)
    assert 0.3 < ranking(found.score, bad) < 0.7


def test_the_score_is_minus_the_loss_after_training_with_gradient_ascent() -> None:
    (x, y), _ = shortcut()
    found = loss_isolation((x, y), net=flat, epochs=3, gamma=1.0, seed=4)

    def loss(model: nn.Module, rows: Tensor, labels: Tensor) -> Tensor:
        value = F.cross_entropy(model(rows), labels, reduction="none")
        return torch.where(value < 1.0, -value, value)

    model = fit(started(flat, 4), (x, y), loss=loss, epochs=3, rate=constant(0.1), seed=4)
    assert torch.allclose(found.score, -F.cross_entropy(model(x), y, reduction="none"), atol=1e-5)
    assert found.flagged.equal(found.score >= found.score.sort().values[-15])


def test_another_order_of_the_rows_is_another_draw_of_the_same() -> None:
    """Training draws by place, so that only what is found may not change."""
    (x, y), bad = shortcut()
    order = torch.randperm(300, generator=torch.Generator().manual_seed(1))
    found = loss_isolation((x, y), net=flat, isolate=0.1, epochs=20, batch=32)
    moved = loss_isolation((x[order], y[order]), net=flat, isolate=0.1, epochs=20, batch=32)
    assert float((moved.flagged & found.flagged[order]).sum()) >= 27
    assert torch.corrcoef(torch.stack([moved.score, found.score[order]]))[0, 1] > 0.9


def test_the_seed_alone_draws_and_the_random_state_stays() -> None:
    data, _ = shortcut()
    state = torch.random.get_rng_state()
    first, again, other = (loss_isolation(data, net=flat, epochs=1, seed=seed).score for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_every_epoch_remembers_every_row() -> None:
    (x, y), _ = shortcut(many=50)
    watched = Watched(y)
    model = started(flat, 0)
    fit(model, numbered(x), loss=watched, epochs=1, batch=50, rate=constant(0.0))
    before = started(flat, 0)(x)
    record = watched.record
    assert torch.allclose(record["loss"][0], F.cross_entropy(before, y, reduction="none"), atol=1e-5)
    assert torch.allclose(record["confidence"][0], before.softmax(1)[torch.arange(50), y], atol=1e-5)
    assert record["agreement"][0].equal((before.argmax(1) == y).float())
    watched = Watched(y)
    fit(started(flat, 0), numbered(x), loss=watched, epochs=2.5, batch=10, rate=constant(0.1))
    assert watched.record["loss"].shape == (3, 50)
    assert watched.record["loss"][:2].isfinite().all()
    assert int(watched.record["loss"][2].isfinite().sum()) in (20, 30), "half an epoch has seen half the rows"


def test_the_losses_that_slow_learning_down_are_those_of_their_papers() -> None:
    logits, y = torch.tensor([[4.0, 0.0], [0.0, 4.0], [0.0, 0.0]]), torch.tensor([0, 0, 1])
    value = plain(logits, y)
    assert value.tolist() == pytest.approx([0.01815, 4.01815, 0.69315], abs=1e-4)
    assert gradient_ascent(0.5)(logits, y).tolist() == pytest.approx([-0.01815, 4.01815, 0.69315], abs=1e-4)
    assert flooded(0.5)(logits[[0, 2]], y[[0, 2]]).mean().item() == pytest.approx(0.64435, abs=1e-4)


def test_the_highest_are_as_many_as_asked_for() -> None:
    assert highest(torch.tensor([3.0, 1.0, 2.0, 5.0]), 2).tolist() == [True, False, False, True]
    assert not highest(torch.tensor([3.0, 1.0]), 0).any()


@pytest.mark.parametrize("share", [0.0, 0.001, 0.999, 1.5])
def test_a_share_of_no_rows_or_of_all_is_refused(share) -> None:
    (x, y), _ = shortcut()
    with pytest.raises(ValueError, match="expected a share to isolate that is 1 to 299 rows"):
        isolated((x, y), flat, share, plain, 1, 128, 0.1, 0)
