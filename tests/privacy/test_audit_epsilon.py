"""The audit: a plain training gives canaries away, a private one does not, and broken privacy is called out."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from membership_worlds import net, noise
from torch import Tensor, nn

from buckler import stats
from buckler.accountant import calibrated
from buckler.data import Rows
from buckler.kinds import Audited, Protected
from buckler.privacy.audit_epsilon import audit_epsilon
from buckler.private import Private
from buckler.train import Filling, fit, started, steps

PROMISE, DELTA, BATCH, EPOCHS = 0.5, 1e-5, 64, 40


def trained(
    how: Callable[[float], Filling],
) -> Callable[[Rows, Callable[[], nn.Module], int], Protected]:
    """A training that promises what the accountant says of sound noise, whatever it does."""

    def training(data: Rows, net: Callable[[], nn.Module], seed: int) -> Protected:
        many = len(data[1])
        sound, promised = calibrated(PROMISE, DELTA, BATCH / many, steps(many, BATCH, EPOCHS))
        model = started(net, seed)
        fit(model, data, loss=how(sound), epochs=EPOCHS, batch=BATCH, rate=0.1, decay=0.0, seed=seed)
        return Protected(model, promised, DELTA)

    return training


def bound(made: Audited) -> float:
    columns = made.score.float(), made.held.float(), torch.full(made.score.shape, made.delta or DELTA)
    return stats.epsilon(torch.stack(columns, 1), "canaries").low


def audited(how: Callable[[float], Filling]) -> float:
    return bound(audit_epsilon(noise(240), net=net, training=trained(how), canaries=120, seed=1))


def test_sound_privacy_is_not_called_out() -> None:
    assert audited(lambda noise: Private(1.0, noise)) == 0.0


class Linear(nn.Module):
    """Answers with rows of one length times weights."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight)

    def forward(self, x: Tensor) -> Tensor:
        return unit(x) @ self.weight


def unit(x: Tensor) -> Tensor:
    return nn.functional.normalize(x.flatten(1) - 0.5)


@pytest.mark.parametrize(("deviation", "promised"), [(3.0, 1.27), (10.0, 0.34)])
def test_noise_that_the_seed_draws_hides_canaries(deviation: float, promised: float) -> None:
    """The sum of rows, each of length 1, with normal noise on it: a Gaussian mechanism, of which epsilon is known."""

    def training(data: Rows, net: Callable[[], nn.Module], seed: int) -> Protected:
        sums = unit(data[0]).T @ nn.functional.one_hot(data[1], 4).float()
        drawn = torch.randn(sums.shape, generator=torch.Generator().manual_seed(seed))
        return Protected(Linear(sums + deviation * drawn), promised, DELTA)

    draw = torch.Generator().manual_seed(5)
    data = torch.rand(400, 1, 20, 20, generator=draw), torch.randint(0, 4, (400,), generator=draw)
    made = [audit_epsilon(data, net=net, training=training, canaries=200, seed=seed) for seed in range(3)]
    assert all(bound(one) <= promised for one in made)


@pytest.mark.parametrize(
    "how",
    [
        lambda noise: Private(1.0, 0.0),  # no noise at all
        lambda noise: Private(50.0, 0.1 * noise / 50.0),  # noise for a clip of 0.1, and a clip of 50
        lambda noise: Private(1.0, noise / BATCH),  # divided by the batch twice
    ],
    ids=["no noise", "wrong clip", "noise divided twice"],
)
def test_broken_privacy_is_called_out(how: Callable[[float], Filling]) -> None:
    assert audited(how) > PROMISE


def test_the_plain_loop_gives_canaries_away_and_promises_nothing() -> None:
    made = audit_epsilon(noise(240), net=net, canaries=120)
    assert made.epsilon is None
    assert bound(made) > 1.0
    assert made.score.shape == made.held.shape == (120,)


def test_a_training_that_learns_nothing_gives_nothing_away() -> None:
    def idle(data: Rows, net: Callable[[], nn.Module], seed: int) -> Protected:
        return Protected(started(net, int(data[0].sum() * 1e4) % 1000).eval())

    found = [bound(audit_epsilon(noise(120), net=net, training=idle, canaries=60, seed=seed)) for seed in range(40)]
    assert sum(low == 0 for low in found) >= 36


def test_canaries_have_wrong_labels_and_half_of_them_are_held() -> None:
    x, y = noise(200)
    seen: list[Rows] = []

    def watched(data: Rows, net: Callable[[], nn.Module], seed: int) -> Protected:
        seen.append(data)
        return Protected(started(net, seed).eval())

    made = audit_epsilon((x, y), net=net, training=watched, canaries=80)
    (rows, labels), (rest, _) = seen
    assert len(rest) == 120
    assert len(rows) == 120 + int(made.held.sum())
    place = (rows[:, None] == x[None]).flatten(2).all(2).int().argmax(1)
    assert torch.equal(labels[:120], y[place[:120]])
    assert bool((labels[120:] != y[place[120:]]).all())
    assert 20 < int(made.held.sum()) < 60


def test_too_few_canaries_or_classes_are_said() -> None:
    x, y = noise(60)
    for data, many in (((x[:30], y[:30]), 500), ((x, y), 10), ((x, torch.zeros_like(y)), 30)):
        with pytest.raises(ValueError, match="expected 20 canaries or more, half of all rows at most"):
            audit_epsilon(data, net=net, canaries=many)
