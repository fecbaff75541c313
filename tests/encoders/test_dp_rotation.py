"""No row shows by more than was promised: brute force over neighbours, the accountant's price, and what is refused."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import pytest
import torch
from pretraining_worlds import world
from torch import Tensor, nn
from torch.nn import functional as F

import buckler.encoders.dp_rotation as module
from buckler.accountant import spent
from buckler.data import Rows
from buckler.embedding import embedded
from buckler.encoders.dp_rotation import TURNS, _turned, dp_rotation
from buckler.private import Private, rowwise
from buckler.train import started, steps


def net() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 16, 3, 2, 1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(2), nn.Flatten(),
    )  # fmt: skip


def whole() -> nn.Module:
    return rowwise(nn.Sequential(net(), nn.Linear(64, TURNS)))


def turned_by(turns: Tensor) -> Callable[[nn.Module, Tensor, Tensor], Tensor]:
    """The loss with turns that are given, by a loop: neighbours are compared with everything else the same."""

    def loss(model: nn.Module, x: Tensor, _: Tensor) -> Tensor:
        shown = torch.stack([row.rot90(int(turn), (1, 2)) for row, turn in zip(x, turns, strict=True)])
        return F.cross_entropy(model(shown), turns, reduction="none")

    return loss


def summed(model: nn.Module, x: Tensor, turns: Tensor, clip: float) -> Tensor:
    """The sum of clipped gradients as a step makes it, all weights in a row."""
    model.zero_grad()
    with Private(clip, 0.0, turned_by(turns)).filling(model.train(), 1) as fill:
        fill(x, turns)
    return torch.cat([torch.zeros(w.numel()) if w.grad is None else w.grad.flatten() for w in model.parameters()])


@pytest.mark.parametrize("clip", [0.05, 1.0])
def test_one_row_more_changes_a_step_by_at_most_the_clip(clip: float) -> None:
    """Every row of a batch is left out in turn; an image full of 100s, which no image is, is put in."""
    model, (x, _) = started(whole, 0), world(12)
    turns = torch.arange(12) % TURNS
    x[3] = 100.0
    full = summed(model, x, turns, clip)
    moved = list[float]()
    for row in range(12):
        others = torch.arange(12) != row
        moved.append(float((full - summed(model, x[others], turns[others], clip)).norm()))
    assert max(moved) <= clip * (1 + 1e-4)
    assert max(moved) > 0.99 * clip, "the bound is reached, so less noise would not do"
    alone = summed(model, x[:1], turns[:1], clip)
    assert float((full - summed(model, x[1:], turns[1:], clip) - alone).norm()) <= 1e-4 * clip


def test_turns_are_drawn_for_each_row_and_asked_for() -> None:
    class Telling(nn.Module):
        """Sure of how a ramp from left to right was turned."""

        def forward(self, x: Tensor) -> Tensor:
            right, down = (x[:, 0, 0, -1] - x[:, 0, 0, 0]), (x[:, 0, -1, 0] - x[:, 0, 0, 0])
            return 100 * torch.stack([right, -down, -right, down], 1)

    x = torch.linspace(0, 1, 8).expand(400, 1, 8, 8)
    torch.manual_seed(0)
    assert float(_turned(Telling(), x, torch.zeros(400)).max()) < 1e-3
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, TURNS))
    many = _turned(model, x, torch.zeros(400)).unique()
    assert len(many) == TURNS


@pytest.mark.parametrize("batch", [30, 90, 500])
def test_the_noise_is_what_the_promise_costs(monkeypatch: pytest.MonkeyPatch, batch: int) -> None:
    used: list[tuple[float, float, int, int]] = []

    def kept(model: nn.Module, data: object, *, loss: Private, epochs: float, batch: int, **more: object) -> None:
        used.append((loss.noise, loss.clip, batch, steps(90, batch, epochs)))

    monkeypatch.setattr(module, "fit", kept)
    dp_rotation(world(90), net=net, epsilon=2.0, delta=1e-3, clip=0.7, epochs=4, batch=batch)
    ((noise, clip, rows, total),) = used
    assert (clip, rows) == (0.7, min(batch, 90))
    assert total == 4 * math.ceil(90 / rows)
    assert spent(noise, rows / 90, total, 1e-3) == pytest.approx(2.0, rel=0.01)


def upright(many: int, seed: int = 0) -> Rows:
    """Hooks that all stand the same way, anywhere in `(many, 1, 8, 8)`, in noise."""
    draw = torch.Generator().manual_seed(seed)
    x = 0.4 * torch.rand(many, 1, 8, 8, generator=draw)
    hook = torch.tensor([[1.0, 1, 1, 1], [0, 0, 0, 1], [0, 0, 0, 1], [0, 0, 0, 1]])
    for image, (top, left) in zip(x, torch.randint(5, (many, 2), generator=draw).tolist(), strict=True):
        image[0, top : top + 4, left : left + 4] += 0.6 * hook
    return x, torch.zeros(many).long()


def told(encoder: nn.Module) -> float:
    """How far the means of turned hooks lie apart, as a multiple of how far hooks of one turn do (Fisher's ratio)."""
    x, _ = upright(200, seed=1)
    f = torch.stack([embedded(encoder, x.rot90(turn, (2, 3))) for turn in range(TURNS)])
    means = f.mean(1)
    apart = (means - means.mean(0)).square().sum(1).mean()
    return float(apart / (f - means[:, None]).square().sum(2).mean())


@pytest.fixture
def cheap(monkeypatch: pytest.MonkeyPatch) -> None:
    """The price of noise, which takes seconds to find, is guessed where it is not what is tested."""
    monkeypatch.setattr(module, "calibrated", lambda epsilon, *_: (4 / epsilon, epsilon))


@pytest.mark.usefixtures("cheap")
def test_where_much_may_be_spent_much_is_learnt_and_where_little_is_less() -> None:
    make = partial(dp_rotation, upright(300), net=net, batch=150)
    untrained, learnt, hidden = (
        told(made) for made in (make(epochs=0), make(epochs=15, epsilon=20.0), make(epochs=15, epsilon=0.1))
    )
    assert learnt > 2 * untrained
    assert learnt > 2 * hidden


@pytest.mark.usefixtures("cheap")
def test_labels_are_not_looked_at_and_the_seed_decides() -> None:
    x, y = world(40)
    make = partial(dp_rotation, net=net, epochs=1, batch=20)
    one, other, seeded = (
        list(made.state_dict().values()) for made in (make((x, y)), make((x, 7 + 0 * y)), make((x, y), seed=1))
    )
    assert all(map(torch.equal, one, other))
    assert not any(map(torch.equal, one[:1], seeded[:1]))


def test_batch_norm_becomes_group_norm_and_without_epochs_nothing_is_learnt() -> None:
    made = dp_rotation(world(40), net=net, epochs=0)
    assert not any(isinstance(part, nn.BatchNorm2d) for part in made.modules())
    assert not made.training
    fresh = rowwise(started(net, 0)).state_dict().values()
    assert all(map(torch.equal, made.state_dict().values(), fresh))


class Mixing(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(64, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x.flatten(1) - x.flatten(1).mean(0))


@pytest.mark.parametrize(
    ("knobs", "says"),
    [
        ({"epsilon": 0.0}, "expected epsilon and clip above 0"),
        ({"clip": math.inf}, "expected epsilon and clip above 0"),
        ({"delta": 1.0}, "delta between 0 and 1"),
        ({"net": Mixing}, "whose answer to a row depends on no other row"),
        ({"net": lambda: nn.Conv2d(1, 4, 3)}, "gives a matrix"),
    ],
)
def test_what_cannot_be_promised_is_refused(knobs: dict[str, object], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        dp_rotation(world(40), **({"net": net, "epochs": 1} | knobs))  # pyright: ignore


def test_only_square_images_can_be_turned() -> None:
    x, y = world(40)
    with pytest.raises(ValueError, match=r"expected square images.* got \(1, 8, 6\): crop them"):
        dp_rotation((x[..., :6], y), net=net)


def test_weights_do_not_tell_who_was_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """One generator's numbers make weights and coins alike, if both begin with the same seed."""
    seeds = list[int]()
    monkeypatch.setattr(module, "calibrated", lambda epsilon, *_: (4 / epsilon, epsilon))
    monkeypatch.setattr(module, "fit", lambda *_, seed, **__: seeds.append(seed))
    for seed in range(20):
        dp_rotation(world(90), net=net, epochs=1, batch=30, seed=seed)
    assert len({*seeds} - {*range(1000)}) == 20
    torch.manual_seed(3)
    weights = nn.Linear(30, 20).weight.detach().flatten()
    alike = list[float]()
    for seed in (3, seeds[3]):
        torch.manual_seed(seed)
        alike.append(float(torch.corrcoef(torch.stack([weights, torch.rand(600)]))[0, 1].abs()))
    assert alike[0] > 0.99 > 0.2 > alike[1]
