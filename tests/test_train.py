from __future__ import annotations

import math
from collections.abc import Callable
from copy import deepcopy
from functools import partial
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from buckler.nets import LinearModel, ResNet, SmallCNN
from buckler.train import constant, cosine, cross_entropy, fit, lasting, portions, started, triangle


def _blobs(many: int = 200) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(0)
    y = torch.arange(many) % 2
    return (torch.randn(many, 4, generator=draw) * 0.1 + 0.3 + 0.4 * y[:, None]).clamp(0, 1), y


def _net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Linear(4, 2)


def test_it_learns_and_ends_in_evaluation_mode() -> None:
    x, y = _blobs()
    model = fit(_net(), (x, y), epochs=20, batch=32)
    assert not model.training
    assert (model(x).argmax(1) == y).float().mean() > 0.95


def test_the_seed_decides_and_the_global_state_does_not_move() -> None:
    data = _blobs()
    torch.manual_seed(1)
    one = fit(_net(), data, epochs=2, seed=5)
    torch.manual_seed(2)
    two = fit(_net(), data, epochs=2, seed=5)
    other = fit(_net(), data, epochs=2, seed=6)
    assert torch.equal(one.weight, two.weight)  # pyright: ignore
    assert not torch.equal(one.weight, other.weight)  # pyright: ignore
    net, state = _net(), torch.random.get_rng_state()
    fit(net, data, epochs=1)
    assert torch.equal(state, torch.random.get_rng_state())


def test_tensors_datasets_and_bytes_train_alike() -> None:
    x, y = _blobs(64)
    pixels = (x * 255).round().to(torch.uint8)
    plain = fit(_net(), (pixels.float() / 255, y), epochs=2, batch=16)
    streamed = fit(_net(), TensorDataset(pixels, y), epochs=2, batch=16)
    packed = fit(_net(), (pixels, y), epochs=2, batch=16)
    assert torch.allclose(plain.weight, streamed.weight)  # pyright: ignore
    assert torch.allclose(plain.weight, packed.weight)  # pyright: ignore


def test_a_loss_per_row_and_soft_labels() -> None:
    x, y = _blobs(64)
    seen: list[int] = []

    def loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        seen.append(len(x))
        return (model(x).softmax(1) - y).square().sum(1)

    ticks: list[float] = []
    fit(
        _net(),
        (x, nn.functional.one_hot(y, 2).float()),
        loss=loss,
        epochs=1.5,
        batch=16,
        tick=lambda d, _: ticks.append(d),
    )
    assert seen == [16] * 6
    assert ticks[-1] == 1.0
    fit(_net(), (x, nn.functional.one_hot(y, 2).float()), epochs=1)


def test_what_cannot_be_trained_says_so() -> None:
    x, y = _blobs(32)
    with pytest.raises(ValueError, match="lower the rate"):
        fit(_net(), (x, y), loss=lambda m, x, _: m(x).sum(1) * float("nan"), epochs=1)
    with pytest.raises(ValueError, match="at least one row"):
        fit(_net(), (x[:0], y[:0]), epochs=1)
    with pytest.raises(ValueError, match="parameters to train"):
        fit(nn.Flatten(), (x, y), epochs=1)
    with pytest.raises(ValueError, match="parameters to train"):
        fit(_net().requires_grad_(False), (x, y), epochs=1)
    with pytest.raises(ValueError, match="one row to a batch, got 0"):
        fit(_net(), (x, y), epochs=1, batch=0)


@pytest.mark.parametrize("epochs", [-1, -0.1, math.inf, math.nan])
def test_epochs_that_do_not_end_are_refused(epochs: float) -> None:
    with pytest.raises(ValueError, match="epochs of 0 or more that end"):
        fit(_net(), _blobs(8), epochs=epochs)
    with pytest.raises(ValueError, match="epochs of 0 or more that end"):
        lasting(1, epochs)


@pytest.mark.parametrize("rate", [-0.1, math.inf, math.nan])
def test_a_rate_is_above_zero_whatever_gives_it(rate: float) -> None:
    for given in (rate, constant(rate), cosine(rate), lambda done: rate * (1 - done)):
        with pytest.raises(ValueError, match="a rate above 0"):
            fit(_net(), _blobs(8), epochs=1, rate=given)
    with pytest.raises(ValueError, match="a rate above 0, got 0"):
        fit(_net(), _blobs(8), epochs=1, rate=0.0)
    fit(_net(), _blobs(8), epochs=1, rate=lambda done: max(0.0, done - 0.9))


def test_no_epochs_change_nothing() -> None:
    net = _net().train()
    before = net.weight.detach().clone()
    assert not fit(net, _blobs(8), epochs=0).training
    assert torch.equal(net.weight, before)
    fit(net, _blobs(8), epochs=0.01)
    assert not torch.equal(net.weight, before), "any part of an epoch is one step at least"


def test_networks_have_the_shapes_they_say() -> None:
    assert SmallCNN(channels=3, side=9, classes=4)(torch.rand(2, 3, 9, 9)).shape == (2, 4)
    assert ResNet(channels=3, blocks=(2, 2, 2, 2), width=8)(torch.rand(2, 3, 32, 32)).shape == (2, 10)
    assert sum(p.numel() for p in ResNet().parameters()) == 77_754


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_the_linear_models_distance_is_the_distance(norm: str) -> None:
    draw = torch.Generator().manual_seed(2)
    model = LinearModel(torch.randn(3, 6, generator=draw), torch.randn(3, generator=draw)).double()
    x = torch.rand(5, 6, generator=draw, dtype=torch.float64)
    y = model(x).argmax(1)
    distance = model.distances(x, y, norm)
    gaps = model.weight.detach()[y][:, None] - model.weight.detach()[None]
    # the best direction by the dual norm just crosses at the distance, and random directions do not before it
    for row in range(5):
        best = []
        for other in {0, 1, 2} - {int(y[row])}:
            w = gaps[row, other]
            step = {"linf": w.sign(), "l2": w / w.norm(), "l1": torch.zeros(6).double()}[norm]
            if norm == "l1":
                step[w.abs().argmax()] = w[w.abs().argmax()].sign()
            for scale, crossed in ((0.999, False), (1.001, True)):
                moved = model((x[row] - scale * distance[row] * step)[None]).argmax(1) != y[row]
                best.append((bool(moved), crossed))
        assert (True, True) in best
        assert (True, False) not in best


def test_rates_are_functions_of_the_share_done() -> None:
    rise = triangle(0.5)
    assert [round(rise(done), 6) for done in (0.0, 0.1, 0.2, 0.6, 1.0)] == [0.0, 0.25, 0.5, 0.25, 0.0]
    assert [round(cosine(0.2)(done), 6) for done in (0.0, 0.5, 1.0)] == [0.2, 0.1, 0.0]
    assert {constant(3e-4)(done) for done in (0.0, 0.5, 1.0)} == {3e-4}


def test_a_constant_rate_without_momentum_to_gather_is_gradient_descent() -> None:
    """One step: weights less rate times (1 + momentum) times gradient, as Nesterov's first step is."""
    x, y = _blobs(8)
    net = _net()
    before = net.weight.detach().clone()
    nn.functional.cross_entropy(net(x), y).backward()
    gradient = net.weight.grad.clone()
    net.zero_grad()
    fit(net, (x, y), epochs=1, batch=8, rate=constant(0.1), decay=0.0)
    assert torch.allclose(net.weight, before - 0.1 * 1.9 * gradient, atol=1e-6)


def test_adam_moves_every_weight_by_its_rate_at_first() -> None:
    x, y = _blobs(8)
    net = _net()
    before = net.weight.detach().clone()
    fit(net, (x, y), epochs=1, batch=8, rate=constant(0.01), decay=0.0, optimizer="adam")
    assert torch.allclose((net.weight - before).abs(), torch.full_like(before, 0.01), rtol=1e-3)


class Viewing(nn.Module):
    """Reads its convolution's output with `view`, which only what is contiguous allows."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 4, 3, padding=1), nn.Linear(4 * 64, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.conv(x).view(len(x), -1))


@pytest.fixture
def any_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every batch is large enough to be laid out channels last."""
    monkeypatch.setattr("buckler.train.LARGE", 1)


@pytest.mark.usefixtures("any_batch")
@pytest.mark.parametrize("net", [lambda: ResNet(channels=3, width=4, classes=2), Viewing])
def test_convolutions_train_as_in_a_naive_loop_and_keep_their_layout(net: Callable[[], nn.Module]) -> None:
    x = torch.rand(24, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    y = torch.arange(24) % 2
    plain = started(net, 0).train()
    speeds = [torch.zeros_like(parameter) for parameter in plain.parameters()]
    for _ in range(3):
        gradients = torch.autograd.grad(nn.functional.cross_entropy(plain(x), y), list(plain.parameters()))
        with torch.no_grad():
            for parameter, gradient, speed in zip(plain.parameters(), gradients, speeds, strict=True):
                speed.mul_(0.9).add_(gradient)
                parameter -= 0.1 * (gradient + 0.9 * speed)
    laid: list[bool] = []

    def loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        first = next(part for part in model.modules() if isinstance(part, nn.Conv2d))
        with first.register_forward_hook(lambda _part, _given, out: laid.append(out.is_contiguous())):
            return cross_entropy(model, x, y)

    quick = fit(started(net, 0), (x, y), loss=loss, epochs=3, batch=24, rate=constant(0.1), decay=0.0)
    assert laid == ([False, True, True, True] if net is Viewing else [False] * 3), "channels last wherever it can be"
    for name, weight in quick.state_dict().items():
        torch.testing.assert_close(weight, plain.state_dict()[name], rtol=1e-3, atol=1e-5)


class Drawing(nn.Module):
    """Draws noise, and counts how often it is called, twice: one count is another buffer every time."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Linear(4, 2)
        self.calls, self.seen = 0, nn.Buffer(torch.zeros(()))

    def maps(self, x: Tensor) -> Tensor:
        self.calls, self.seen = self.calls + 1, self.seen + 1
        return self.norm(self.conv(x + 0.1 * torch.randn(x.shape)))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.maps(x).mean((2, 3)))


def mapped(model: nn.Module, x: Tensor, y: Tensor, *, flat: Callable[[Tensor], Tensor]) -> Tensor:
    """A loss that reads maps, and not what the network makes of them."""
    assert isinstance(model, Drawing)
    return cross_entropy(model.head, flat(model.maps(x)).mean(2), y)


class Backwards(torch.autograd.Function):
    """Passes maps on, and views them on the way back, when what stands above has its gradients."""

    @staticmethod
    def forward(ctx: Any, maps: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx.save_for_backward(maps)
        return maps.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        return grad + 0 * ctx.saved_tensors[0].view(-1)[0]


@pytest.mark.usefixtures("any_batch")
@pytest.mark.parametrize(
    "viewed",
    [lambda maps: maps.view(-1).view(len(maps), 4, -1), lambda maps: cast(Tensor, Backwards.apply(maps)).flatten(2)],
)
def test_a_loss_that_needs_what_is_contiguous_is_answered_so_as_if_nothing_else_had_been_tried(
    viewed: Callable[[Tensor], Tensor],
) -> None:
    x, y = torch.rand(24, 3, 8, 8, generator=torch.Generator().manual_seed(0)), torch.arange(24) % 2

    def trained(flat: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
        return fit(started(Drawing, 0), (x, y), loss=partial(mapped, flat=flat), epochs=2, batch=8).state_dict()

    one, other = trained(viewed), trained(lambda maps: maps.flatten(2))
    assert int(one["norm.num_batches_tracked"]) == int(one["seen"]) == 6
    for name, value in one.items():
        torch.testing.assert_close(value, other[name], rtol=1e-3, atol=1e-5)


@pytest.mark.usefixtures("any_batch")
def test_training_leaves_weights_where_they_lie_and_asks_nothing_else_of_the_model() -> None:
    x, y = torch.rand(24, 3, 8, 8, generator=torch.Generator().manual_seed(0)), torch.arange(24) % 2
    net = started(Drawing, 0)
    assert isinstance(net, Drawing)
    net.register_parameter("tied", net.conv.weight)
    held, copies = net.state_dict(), list[nn.Module]()
    fit(net, (x, y), epochs=2, batch=8, tick=lambda _done, _loss: copies.append(deepcopy(net)))
    assert net.calls == 6
    assert held["conv.weight"].data_ptr() == net.conv.weight.data_ptr() == net.tied.data_ptr()
    assert all(weight.is_contiguous() for model in (net, *copies) for weight in model.state_dict().values())
    wide = started(Drawing, 0).to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    fit(wide, (x, y), epochs=1, batch=8)
    assert wide.conv.weight.is_contiguous(memory_format=torch.channels_last)

    def fails(_model: nn.Module, _x: Tensor, _y: Tensor) -> Tensor:
        raise Stop

    with pytest.raises(Stop):
        fit(net, (x, y), loss=fails)
    assert net.conv(x).is_contiguous(), "nothing is left of it"


def test_small_batches_stay_as_they_are() -> None:
    net, laid = started(Drawing, 0), set[bool]()
    assert isinstance(net, Drawing)
    net.norm.register_forward_hook(lambda _part, given, _out: laid.add(given[0].is_contiguous()))
    for side, same in ((8, True), (40, False)):
        laid.clear()
        fit(net, (torch.rand(16, 3, side, side), torch.arange(16) % 2), epochs=1, batch=16)
        assert laid == {same}


class Stop(RuntimeError): ...


def test_a_network_starts_by_its_seed_alone() -> None:
    state = torch.get_rng_state()
    one, two, other = (started(SmallCNN, seed).head.weight for seed in (1, 1, 2))
    assert torch.equal(one, two)
    assert not torch.equal(one, other)
    assert torch.equal(torch.get_rng_state(), state)
    with pytest.raises(ValueError, match="got str from it"):
        started(lambda: "net", 0)
    for given, named in ((None, "NoneType"), (_net(), "Linear")):
        with pytest.raises(ValueError, match=f"a function that returns an untrained nn.Module, got {named}$"):
            started(given, 0)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(("many", "batch", "sizes"), [(9, 4, [4, 5]), (8, 4, [4, 4]), (10, 4, [4, 4, 2]), (1, 4, [1]),
                                                      (5, 4, [5]), (3, 1, [1, 1, 1])])  # fmt: skip
def test_a_last_row_alone_joins_the_batch_before(many: int, batch: int, sizes: list[int]) -> None:
    assert portions(many, batch) == sizes
    x, y = _blobs(many)
    seen: list[int] = []

    def loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        seen.append(len(x))
        return cross_entropy(model, x, y)

    for data in ((x, y), TensorDataset(x, y)):
        fit(_net(), data, loss=loss, epochs=2, batch=batch)
    assert seen == sizes * 4


def test_batch_norm_over_vectors_trains_on_any_number_of_rows() -> None:
    net = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Linear(3, 2))
    fit(net, _blobs(33), epochs=1, batch=32)


def test_rows_looked_up_sparsely_are_learnt() -> None:
    x, y = torch.arange(8)[:, None] % 4, torch.arange(8) % 2

    def trained(sparse: bool) -> Tensor:
        net = started(lambda: nn.Sequential(nn.Embedding(4, 2, sparse=sparse), nn.Flatten()), 0)
        looked = fit(net, (x, y), loss=lambda model, x, y: cross_entropy(model, x.long(), y), epochs=3, decay=0.0)
        return looked.state_dict()["0.weight"]

    torch.testing.assert_close(trained(sparse=True), trained(sparse=False))


class Skipping(nn.Module):
    """A weight that is every second number of others, and, from the third batch on, a second layer."""

    def __init__(self, gaps: bool) -> None:
        super().__init__()
        every = torch.randn(2, 8, generator=torch.Generator().manual_seed(0))
        self.weight = nn.Parameter(every[:, ::2] if gaps else every[:, ::2].clone())
        self.late, self.calls = nn.Linear(4, 2), 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return x @ self.weight.T + (self.late(x) if self.calls > 2 else 0)


def test_weights_train_wherever_their_numbers_lie_and_whenever_their_layer_joins() -> None:
    begun, plain, gaps = (
        fit(started(partial(Skipping, how), 0), _blobs(32), epochs=epochs, batch=8).state_dict()
        for how, epochs in ((False, 0), (False, 1), (True, 1))
    )
    assert not torch.equal(plain["late.weight"], begun["late.weight"])
    for name, weight in plain.items():
        torch.testing.assert_close(gaps[name], weight)
