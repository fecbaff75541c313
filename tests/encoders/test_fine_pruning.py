"""Fine-pruning of an encoder: what sleeps by naive counts, how much may go by one more, and that it stays gone."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import pytest
import torch
from test_bad_encoder import obeyed
from torch import Tensor, nn
from torch.nn import functional as F

from buckler.data import Rows
from buckler.embedding import embedded
from buckler.encoders._asleep import channels, woken
from buckler.encoders.fine_pruning import fine_pruning
from buckler.graph import Channels, silence, silenced
from buckler.kinds import Implanted
from buckler.train import started


class Watched(nn.Module):
    """Features of which channel 2 of the last map wakes for pixels that are brighter than 0.9, and for nothing else."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(1, 6, 3, padding=1), nn.Conv2d(6, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.last(F.relu(self.first(x)))).flatten(1)


def watched() -> Watched:
    net = started(Watched, 0)
    with torch.no_grad():
        net.first.weight[5], net.first.bias[5] = 0, -0.9
        net.first.weight[5, 0, 1, 1] = 1
        net.last.weight[2], net.last.bias[2] = 0, -0.05
        net.last.weight[2, 5] = 100
        net.last.weight[:2, 5], net.last.weight[3:, 5] = 0, 0
    return net


def cornered(x: Tensor) -> Tensor:
    x = x.clone()
    x[:, :, 0, 0] = 1
    return x


def test_a_channel_that_sleeps_is_removed_with_what_it_hides(learnt: Rows) -> None:
    net, x = watched(), learnt[0] / 2
    with torch.no_grad():
        assert float((net(cornered(x)) - net(x)).abs().max()) > 9
        made = fine_pruning(net, x, alike=0.999, epochs=0)
        assert float((made(cornered(x)) - made(x)).abs().max()) < 1
    assert not bool(made.last.weight[2].any())
    assert not bool(made.last.bias[2])
    assert bool(net.last.weight[2].any()), "a copy is pruned"


def by_hand(encoder: nn.Sequential, x: Tensor) -> Iterator[tuple[set[nn.Module], Tensor]]:
    """What writes the maps of a network of three blocks, and how active their channels are: one image at a time."""
    stem, stages = encoder[0], encoder[1]
    levels = [torch.zeros(width) for width in (8, 8, 8, 16, 16, 32, 32)]
    for row in x:
        seen, out = list[Tensor](), stem(row[None])
        seen.append(out)
        for block in stages:
            seen.append(F.relu(block.norm1(block.conv1(out))))
            out = block(out)
            seen.append(out)
        for level, one in zip(levels, seen, strict=True):
            for channel in range(len(level)):
                level[channel] += one[0, channel].abs().mean()
    levels = [level / level.mean() for level in levels]
    one, two, three = stages
    yield {one.conv1, one.norm1}, levels[1]
    yield {stem[0], stem[1], one.conv2, one.norm2}, (levels[0] + levels[2]) / 2
    yield {two.conv1, two.norm1}, levels[3]
    yield {two.conv2, two.norm2, *two.shortcut}, levels[4]
    yield {three.conv1, three.norm1}, levels[5]
    yield {three.conv2, three.norm2, *three.shortcut}, levels[6]


def test_channels_are_tied_and_counted_as_by_hand(encoder: nn.Sequential, learnt: Rows) -> None:
    x = learnt[0][:20]
    with torch.no_grad():
        groups, active = channels(encoder, x)
        expected = list(by_hand(encoder, x))
    found = dict(
        zip((frozenset(group.layers) for group in groups), active.split([g.many for g in groups]), strict=True)
    )
    assert set(found) == {frozenset(layers) for layers, _ in expected}
    for layers, level in expected:
        torch.testing.assert_close(found[frozenset(layers)], level)


def likeness(encoder: nn.Module, before: Tensor, x: Tensor) -> float:
    middle = before.mean(0)
    return float(F.cosine_similarity(embedded(encoder, x) - middle, before - middle).mean())


@pytest.mark.parametrize("alike", [0.9, 0.6])
def test_as_much_goes_as_features_allow_and_no_more(encoder: nn.Module, learnt: Rows, alike: float) -> None:
    x = learnt[0]
    before = embedded(encoder, x)
    made = fine_pruning(encoder, x, alike=alike, epochs=0)
    assert likeness(made, before, x) >= alike
    again = copy.deepcopy(encoder)
    groups, active = channels(again, x)
    order = active.argsort()
    for many in range(1, len(order)):
        silence(groups, order[:many])
        if all(torch.equal(one, other) for one, other in zip(again.parameters(), made.parameters(), strict=True)):
            break
    else:
        raise AssertionError("expected the least active channels to be gone")
    silence(groups, order[: many + 1])
    assert likeness(again, before, x) < alike, "one more would be too many"


def test_what_is_gone_stays_gone_while_the_rest_learns(encoder: nn.Module, learnt: Rows) -> None:
    before, after = (fine_pruning(encoder, learnt[0][:100], epochs=epochs) for epochs in (0, 2))
    assert not after.training
    zeros = 0
    for (name, old), (_, new) in zip(before.named_parameters(), after.named_parameters(), strict=True):
        rows = (old.flatten(1) if old.ndim > 1 else old[:, None]).eq(0).all(1)
        zeros += int(rows.sum())
        assert not bool(new[rows].any()), name
        assert not torch.equal(old, new), name
    assert zeros
    assert not any(parameter._backward_hooks for parameter in after.parameters())


def test_silenced_weights_do_not_move_inside_the_block_and_do_behind_it() -> None:
    layer = nn.Conv2d(1, 3, 1)
    with silenced([Channels([layer], 3)], torch.tensor([1])):
        layer(torch.ones(2, 1, 2, 2)).sum().backward()
    assert layer.weight.grad is not None
    assert layer.weight.grad.flatten().tolist() == [8, 0, 8]
    layer.zero_grad()
    layer(torch.ones(2, 1, 2, 2)).sum().backward()
    assert layer.weight.grad.flatten().tolist() == [8, 8, 8]
    assert not bool(layer.weight[1].any() or layer.bias[1].any())


def test_what_sleeps_is_as_it_was_after_training_without_it(encoder: nn.Module, learnt: Rows) -> None:
    """And what it learns inside the block is what the pruned encoder learns."""
    x, made = learnt[0][:60], copy.deepcopy(encoder)
    pruned = fine_pruning(encoder, x, epochs=0)
    with torch.no_grad():
        gone = {
            name: (old == 0) & (mine != 0)
            for (name, old), mine in zip(named(pruned), encoder.parameters(), strict=True)
        }
    with woken(made, x, 0.6):
        assert torch.equal(embedded(made, x), embedded(pruned, x))
        with torch.no_grad():
            for parameter in made.parameters():
                parameter += 1
    for (name, new), old in zip(named(made), encoder.parameters(), strict=True):
        torch.testing.assert_close(new, torch.where(gone[name], old, old + 1))
    assert any(bool(one.any()) for one in gone.values())


def named(net: nn.Module) -> list[tuple[str, Tensor]]:
    return [(name, value.detach()) for name, value in net.named_parameters()]


def test_what_cannot_be_pruned_learns_as_it_is(learnt: Rows) -> None:
    net = nn.Sequential(nn.Flatten(), started(lambda: nn.Linear(64, 4), 0))
    before = embedded(net, learnt[0])
    with woken(net, learnt[0], 0.6):
        assert torch.equal(embedded(net, learnt[0]), before)


def test_behind_it_a_backdoor_is_gone_and_not_what_the_encoder_is_good_for(
    encoder: nn.Module, planted: Implanted, learnt: Rows, unseen: Rows
) -> None:
    repaired = fine_pruning(planted.model, learnt[0], epochs=60)
    accuracy, success = obeyed(repaired, unseen, planted.trigger, 0)
    assert success <= 0.2
    assert accuracy >= obeyed(encoder, unseen, planted.trigger, 0)[0] - 0.06


def test_what_came_in_between_does_not_matter_to_what_sleeps(encoder: nn.Module, learnt: Rows) -> None:
    """Behind an error too."""
    made = copy.deepcopy(encoder)
    with pytest.raises(RuntimeError, match="stop"), woken(made, learnt[0][:60], 0.6):
        raise RuntimeError("stop")
    assert all(torch.equal(one, old) for one, old in zip(made.parameters(), encoder.parameters(), strict=True))
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 4))
    with pytest.raises(ValueError, match="cosine above -1"), woken(net, learnt[0], 7.0):
        pass


class Wired(nn.Module):
    """A first and a last convolution, with something in between, and a second first one that may be joined in."""

    def __init__(self, between: nn.Module, *, joined: bool = False) -> None:
        super().__init__()
        self.one, self.other, self.between, self.joined = nn.Conv2d(1, 8, 3), nn.Conv2d(1, 8, 3), between, joined
        self.last = nn.Conv2d(16 if joined else 8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        seen = F.relu(self.between(self.one(x)))
        return self.last(torch.cat([seen, F.relu(self.other(x))], 1) if self.joined else seen).flatten(1)


def moved(layer: nn.Module) -> nn.Module:
    """A norm whose channels are not zero where it is given zeros."""
    for name, value in layer.state_dict().items():
        if value.ndim:
            nn.init.uniform_(value, *((-1, -0.5) if name == "running_mean" else (0.5, 1)))
    return layer


@pytest.mark.parametrize(
    ("between", "silenced"),
    [
        (nn.Identity(), True),
        (moved(nn.BatchNorm2d(8)), True),
        (moved(nn.GroupNorm(2, 8)), True),
        (moved(nn.InstanceNorm2d(8, affine=True)), True),
        (nn.Conv2d(8, 8, 3, groups=8), True),
        (nn.ChannelShuffle(2), False),
        (moved(nn.BatchNorm2d(8, affine=False)), False),
        (nn.ConvTranspose2d(8, 8, 3), False),
    ],
)
def test_only_what_can_be_switched_off_is_pruned(between: nn.Module, *, silenced: bool, learnt: Rows) -> None:
    net, x = started(lambda: Wired(between), 0).eval(), learnt[0][:20]
    writes = between if isinstance(between, nn.Conv2d) else net.one
    with torch.no_grad():
        groups, active = channels(net, x)
        found = [group for group in groups if writes in group.layers]
        assert len(found) == silenced
        assert sum(group.many for group in groups) == len(active)
        before = net.between(net.one(x)).abs().amax((0, 2, 3))
        if found:
            silence(found, torch.tensor([0, 3]))
            after = net.between(net.one(x)).abs().amax((0, 2, 3))
            assert ((before > 0) & (after == 0)).nonzero().squeeze(1).tolist() == [0, 3]


def test_maps_that_are_joined_are_pruned_each(learnt: Rows) -> None:
    net = started(lambda: Wired(nn.Identity(), joined=True), 0).eval()
    with torch.no_grad():
        groups, _ = channels(net, learnt[0][:20])
    assert [group.layers for group in groups] == [[net.last], [net.one], [net.other]]


class Joining(nn.Module):
    """Maps that are joined with what they were joined of, many times over."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(1, 2, 1), nn.Conv2d(2, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        for _ in range(30):
            x = torch.cat([x, x * 2], 1)[:, :3]
        return self.last(x[:, :2]).flatten(1)


def test_what_is_joined_again_and_again_is_looked_at_once(learnt: Rows) -> None:
    net = started(Joining, 0).eval()
    with torch.no_grad():
        groups, _ = channels(net, learnt[0][:20])
    assert [group.layers for group in groups] == [[net.last], [net.first]]


def test_an_encoder_that_collapses_on_the_way_is_pruned_less(learnt: Rows) -> None:
    """Of a bottleneck of one channel nothing may go, though bisection tries to."""
    net = nn.Sequential(nn.Conv2d(1, 6, 3), nn.ReLU(), nn.Conv2d(6, 1, 3), nn.ReLU(), nn.Conv2d(1, 6, 3), nn.Flatten())
    net = started(lambda: net, 0)
    with torch.no_grad():
        net[2].bias += 1
        before = embedded(net, learnt[0])
        made = fine_pruning(net, learnt[0], alike=0.3, epochs=0)
    assert likeness(made, before, learnt[0]) >= 0.3


class Branching(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1) if float(x.sum()) > 0 else x.flatten(1) * 2


@pytest.mark.parametrize(
    ("net", "alike", "why"),
    [
        (nn.Sequential(nn.Flatten(), nn.Linear(64, 4)), 0.6, "with convolutions"),
        (Branching(), 0.6, "torch.fx can trace"),
        (watched(), 1.01, "cosine above -1"),
        (watched(), -1.0, "cosine above -1"),
        (watched(), float("nan"), "cosine above -1"),
    ],
)
def test_what_cannot_be_pruned_is_refused(net: nn.Module, alike: float, why: str, learnt: Rows) -> None:
    with pytest.raises(ValueError, match=why):
        fine_pruning(net, learnt[0][:20], alike=alike)


@pytest.mark.parametrize("rows", [torch.rand(1, 1, 8, 8), torch.rand(20, 8, 8)])
def test_what_is_not_images_is_refused(rows: Tensor) -> None:
    with pytest.raises(ValueError, match="two images or more"):
        fine_pruning(watched(), rows)
