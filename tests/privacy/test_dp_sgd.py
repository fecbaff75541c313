"""DP-SGD: every step is that of a naive loop, the noise is what was asked for, and what is promised is paid for."""

from __future__ import annotations

import copy
import math
import sys
from collections.abc import Callable
from functools import partial

import pytest
import torch
from membership_worlds import SIDE, bright, net, noise, normed
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import TensorDataset

from buckler.accountant import calibrated, spent
from buckler.privacy.dp_sgd import dp_sgd
from buckler.private import Private, measurable, rowwise
from buckler.train import _drawn, constant, cross_entropy, fit, started, steps


def convolved() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, stride=2, padding=1),
        nn.GroupNorm(2, 4),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(4 * (SIDE // 2) ** 2, 4),
    )


def naive(model: nn.Module, x: Tensor, y: Tensor, clip: float) -> tuple[list[Tensor], Tensor]:
    """The sum of clipped gradients, row after row, and the rows' norms."""
    total, norms = [torch.zeros_like(weight) for weight in model.parameters()], list[Tensor]()
    for row in range(len(y)):
        grads = torch.autograd.grad(F.cross_entropy(model(x[row, None]), y[row, None]), list(model.parameters()))
        norms.append(torch.cat([grad.flatten() for grad in grads]).norm())
        for one, grad in zip(total, grads, strict=True):
            one += grad * min(1.0, clip / float(norms[-1]))
    return total, torch.stack(norms)


def filled(private: Private, model: nn.Module, x: Tensor, y: Tensor, batch: int, seed: int = 0) -> list[Tensor]:
    torch.manual_seed(seed)
    model.zero_grad()
    with private.filling(model.train(), batch) as fill:
        fill(x, y)
    return [weight.grad.clone() for weight in model.parameters()]  # pyright: ignore


def close(a: list[Tensor], b: list[Tensor], share: float = 1e-5) -> bool:
    return all(float((u - v).norm()) <= share * float(v.norm()) for u, v in zip(a, b, strict=True))


@pytest.mark.parametrize("make", [net, convolved])
@pytest.mark.parametrize("ghost", [True, False])
def test_the_gradients_are_those_of_a_naive_loop(make: type, ghost: bool) -> None:
    model, (x, y) = started(make, 0), noise(24)
    _, norms = naive(model, x, y, 1.0)
    clip = float(norms.median())  # half of the rows are clipped
    total, _ = naive(model, x, y, clip)
    expected = [one / 40 for one in total]  # by the rows expected, not by the 24 that came
    assert close(filled(Private(clip, 0.0, ghost=ghost), model, x, y, 40), expected)


def test_a_whole_step_of_the_loop_is_that_of_a_naive_loop() -> None:
    """With as many rows expected as there are each is drawn; Nesterov's first step is 1.9 gradients long."""
    model, (x, y) = started(convolved, 0), noise(20)
    total, _ = naive(model, x, y, 0.5)
    expected = [w.detach() - 0.1 * 1.9 * one / 20 for w, one in zip(model.parameters(), total, strict=True)]
    fit(model, (x, y), loss=Private(0.5, 0.0), epochs=1, batch=20, rate=constant(0.1), decay=0.0)
    assert close([weight.detach() for weight in model.parameters()], expected)


def test_a_batch_without_rows_is_noise_alone_and_of_the_size_asked_for() -> None:
    model = started(net, 0)
    x, y = noise(4)
    grads = filled(Private(0.5, 3.0), model, x[:0], y[:0], 10)
    drawn = torch.cat([grad.flatten() for grad in grads]) * 10 / 1.5
    assert float(drawn.std()) == pytest.approx(1.0, abs=4 / math.sqrt(2 * len(drawn)))
    assert float(drawn.mean()) == pytest.approx(0.0, abs=4 / math.sqrt(len(drawn)))
    assert float((drawn.abs() > 1.96).float().mean()) == pytest.approx(0.05, abs=0.015)


def test_noise_is_added_to_the_same_sum_and_is_new_in_every_step() -> None:
    model, (x, y) = started(net, 0), noise(12)
    still = filled(Private(0.5, 0.0), model, x, y, 10)
    loud = filled(Private(0.5, 2.0), model, x, y, 10)
    empty = filled(Private(0.5, 2.0), model, x[:0], y[:0], 10)
    other = filled(Private(0.5, 2.0), model, x[:0], y[:0], 10, seed=1)
    assert close(loud, [a + b for a, b in zip(still, empty, strict=True)])
    assert not close(empty, other, 0.5)


def test_a_gradient_that_is_not_finite_counts_as_none() -> None:
    model, (x, y) = started(convolved, 0), noise(12)
    sick = x.clone()
    sick[5] = torch.inf
    sound = torch.arange(12) != 5
    assert close(
        filled(Private(0.5, 0.0), model, sick, y, 12), filled(Private(0.5, 0.0), model, x[sound], y[sound], 12)
    )


def test_a_training_that_diverges_is_said() -> None:
    with pytest.raises(ValueError, match="the loss became nan at step .*: lower the rate"):
        dp_sgd(noise(60), net=net, epochs=40, batch=20, rate=1e38)


@pytest.mark.parametrize("streamed", [True, False])
def test_every_row_is_drawn_by_a_coin_of_its_own(streamed: bool) -> None:
    x, y = torch.arange(50.0)[:, None], torch.arange(50)
    data = TensorDataset(x, y) if streamed else (x, y)
    torch.manual_seed(0)
    stream = _drawn(data, 10, torch.device("cpu"), each=True)
    taken = torch.stack([torch.bincount(next(stream)[1], minlength=50) for _ in range(1500)]).double()
    assert set(taken.unique().tolist()) == {0.0, 1.0}
    assert float(taken.mean()) == pytest.approx(0.2, abs=0.006)
    assert float(taken.sum(1).var()) == pytest.approx(50 * 0.2 * 0.8, rel=0.15)  # 0 if batches had one size
    together = torch.corrcoef(taken.T) - torch.eye(50)
    assert float(together.abs().max()) < 0.15


def test_few_rows_expected_means_batches_without_any() -> None:
    x, y = noise(6)
    for data in ((x, y), TensorDataset(x, y)):
        model = started(net, 0)
        fit(model, data, loss=Private(1.0, 0.1), epochs=5, batch=1, rate=0.01)
        assert all(bool(weight.isfinite().all()) for weight in model.parameters())


def test_other_trainings_draw_as_before() -> None:
    """Every row once in an epoch."""
    x, y = torch.arange(10.0)[:, None], torch.arange(10)
    stream = _drawn((x, y), 4, torch.device("cpu"), each=False)
    for _ in range(2):
        assert sorted(torch.cat([next(stream)[1] for _ in range(3)]).tolist()) == list(range(10))


def test_the_published_setting_costs_what_was_published() -> None:
    share, total, delta = 256 / 60_000, 14_040, 1e-5
    mine = spent(1.1, share, total, delta)
    assert mine == pytest.approx(2.38, rel=0.01)
    from opacus.accountants import PRVAccountant

    other = PRVAccountant()
    other.history = [(1.1, share, total)]
    assert mine == pytest.approx(other.get_epsilon(delta), rel=0.01)


def test_one_step_of_all_rows_is_the_gaussian_mechanism() -> None:
    """delta is Phi(1 / 2s - e s) - exp(e) Phi(-1 / 2s - e s) (Balle and Wang, ICML 2018)."""
    normal = torch.distributions.Normal(0.0, 1.0)
    for sigma in (0.8, 2.0):
        e = spent(sigma, 1.0, 1, 1e-5)
        a, b = torch.tensor([1 / (2 * sigma) - e * sigma, -1 / (2 * sigma) - e * sigma], dtype=torch.double)
        assert float(normal.cdf(a) - math.exp(e) * normal.cdf(b)) == pytest.approx(1e-5, rel=0.05)


@pytest.mark.parametrize("epsilon", [0.01, 8.0])
def test_the_noise_is_the_least_that_keeps_the_promise(epsilon: float) -> None:
    (found, promised), grid = calibrated(epsilon, 1e-4, 0.2, 50), 1e-4 * min(epsilon, 1.0)
    assert spent(found, 0.2, 50, 1e-4, grid) <= promised <= epsilon < spent(0.99 * found, 0.2, 50, 1e-4, grid)
    assert spent(0.0, 0.2, 50, 1e-4) == math.inf


def test_the_promise_is_that_of_the_steps_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    import buckler.privacy.dp_sgd as module

    used: list[tuple[float, float, int]] = []

    def kept(
        model: nn.Module, data: object, *, loss: Private, epochs: float, batch: int, seed: int, **more: object
    ) -> nn.Module:
        assert seed != 5, "the seed of the weights would tell who is drawn"
        used.append((loss.noise, loss.clip, steps(90, batch, epochs)))
        return model.eval()

    monkeypatch.setattr(module, "fit", kept)
    made = dp_sgd(noise(90), net=net, epsilon=2.0, delta=1e-3, clip=0.7, epochs=4, batch=30, seed=5)
    ((found, clip, total),) = used
    assert (clip, total) == (0.7, 12)
    assert made.epsilon == pytest.approx(spent(found, 1 / 3, 12, 1e-3), rel=1e-3)
    assert made.epsilon == pytest.approx(2.0, rel=0.01)
    assert made.delta == 1e-3


def test_what_is_easy_is_learnt_privately() -> None:
    made = dp_sgd(bright(400), net=net, epsilon=8.0, epochs=30, batch=100)
    x, y = bright(200, seed=1)
    assert float((made.model(x).argmax(1) == y).float().mean()) > 0.8
    assert made.delta == pytest.approx(400**-1.1)


def test_batch_norm_becomes_group_norm() -> None:
    made = dp_sgd(noise(40), net=normed, epochs=1, batch=20)
    assert [type(part) for part in made.model][1] is nn.GroupNorm  # pyright: ignore
    assert rowwise(nn.Sequential(nn.BatchNorm1d(6, affine=False)))[0].num_groups == 1  # pyright: ignore
    double, meta = (
        next(rowwise(nn.Sequential(nn.BatchNorm2d(8)).to(to)).parameters()) for to in (torch.double, "meta")
    )
    assert (double.dtype, meta.device.type) == (torch.double, "meta")


class Mixing(nn.Module):
    """An answer to a row that depends on the others."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(SIDE * SIDE, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x.flatten(1) - x.flatten(1).mean(0))


class Patched(nn.Module):
    """A linear layer on four dimensions, which ghost clipping of Opacus passes over."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.head = nn.Linear(3, 5), nn.Linear(SIDE * SIDE // 3 * 5, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.inner(x.view(len(x), SIDE, SIDE // 3, 3)).flatten(1))


class Chancy(nn.Module):
    """Dropout that no module does."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(SIDE * SIDE, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(F.dropout(x.flatten(1), 0.5, self.training))


def remembering() -> nn.Module:
    """Whose buffers learn from the rows, and are no part of any answer in training."""
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.InstanceNorm2d(4, track_running_stats=True), nn.Flatten(), nn.Linear(4 * 16, 4)
    )


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (Mixing, "another norm than it has alone"),
        (lambda: nn.Sequential(nn.Dropout(0.5), Mixing()), "another norm than it has alone"),
        (Chancy, "answers that change by chance"),
        (remembering, "buffers that change with the rows"),
    ],
    ids=["mixing", "mixing with dropout", "chance", "buffers"],
)
def test_a_network_that_mixes_rows_or_keeps_what_they_are_is_refused(make: Callable[[], nn.Module], says: str) -> None:
    with pytest.raises(ValueError, match=f"whose answer to a row depends on no other row .* got {says}"):
        dp_sgd(noise(40), net=make, epochs=1)


def test_where_ghost_clipping_does_not_know_a_layer_gradients_are_taken() -> None:
    model, (x, y) = started(Patched, 0).train(), noise(10)
    assert measurable(started(net, 0).train(), x)
    assert not measurable(model, x)
    dropping = nn.Sequential(model, nn.Dropout(0.5)).train()
    assert not measurable(dropping, x)
    assert dropping[1].training
    total, _ = naive(model, x, y, 0.5)
    assert close(filled(Private(0.5, 0.0, ghost=False), model, x, y, 1), total)


@pytest.mark.parametrize("make", [partial(nn.ReLU, inplace=True), partial(nn.Dropout, 0.5, inplace=True)])
def test_operations_in_place_are_done_out_of_place(make: partial[nn.Module]) -> None:
    def build() -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.Linear(SIDE * SIDE, 8), make(), nn.Linear(8, 4))

    assert dp_sgd(noise(40), net=build, epochs=1, batch=20).epsilon is not None


@pytest.mark.parametrize(
    "knobs",
    [{"epsilon": 0.0}, {"epsilon": math.nan}, {"epsilon": math.inf}, {"delta": 1.0}, {"clip": 0.0}, {"epochs": 0}],
)
def test_a_promise_that_is_none_is_refused(knobs: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="expected epsilon, clip and epochs above 0, and delta between 0 and 1"):
        dp_sgd(noise(40), net=net, **knobs)  # pyright: ignore


def test_what_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "dp_accounting", None)
    with pytest.raises(ValueError, match=r"expected dp-accounting, .* got none installed: pip install 'buckler\[dp\]'"):
        spent(1.0, 0.5, 3, 1e-5)
    monkeypatch.setitem(sys.modules, "opacus", None)
    with pytest.raises(ValueError, match="expected opacus, which differential privacy needs"):
        filled(Private(1.0, 1.0), started(net, 0), *noise(4), 4)


def test_the_loss_is_one_s_own() -> None:
    model, (x, y) = started(net, 0), noise(10)

    def doubled(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        return 2 * cross_entropy(model, x, y)

    once = filled(Private(1e6, 0.0), copy.deepcopy(model), x, y, 1)
    twice = filled(Private(1e6, 0.0, loss=doubled), model, x, y, 1)
    assert close(twice, [2 * grad for grad in once])
