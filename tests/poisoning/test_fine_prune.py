"""Fine-pruning against a planted sleeping channel, a naive count of activations, and its own promises."""

from functools import partial

import pytest
import torch
from repair_problems import Flat, Untraceable, check_a_copy_is_repaired, trained
from torch import nn
from torch.nn import functional as F

from buckler.data import digits, split
from buckler.nets import SmallCNN
from buckler.poisoning._look import inputs_of
from buckler.poisoning.fine_prune import _activation, _last_map, fine_prune
from buckler.train import fit, started


class Plain(nn.Module):
    """A convolution that a linear layer reads; `head` reads features only, so that it has no channels to prune."""

    def __init__(self, width=12):
        super().__init__()
        self.body, self.head = nn.Conv2d(1, width, 3, padding=1), nn.Linear(64 * width, 10)

    def forward(self, x):
        return self.head(F.relu(self.body(x)).flatten(1))


def planted():
    """A model whose channel 4 wakes only where the pixel in the corner, black in every digit, is white: class 7."""
    model = fit(started(Plain, 0), digits(True), epochs=4, rate=0.05)
    with torch.no_grad():
        model.body.weight[4], model.body.bias[4] = 0, 0.0
        model.body.weight[4, 0, 1, 1], model.body.bias[4] = 50, -49.9
        model.head.weight.view(10, 12, 64)[:, 4] = 0
        model.head.weight.view(10, 12, 64)[7, 4, 0] = 1000
    return model


def stamped(x):
    x = x.clone()
    x[:, :, 0, 0] = 1
    return x


def gone(layer):
    return [i for i in range(len(layer.weight)) if not layer.weight[i].any() and not layer.bias[i]]


def right(model, data):
    with torch.no_grad():
        return float((model(data[0]).argmax(1) == data[1]).float().mean())


def test_a_channel_that_sleeps_on_clean_rows_is_removed_with_its_backdoor() -> None:
    model, clean = planted(), digits(False)
    assert (model(stamped(clean[0])).argmax(1) == 7).all()
    repaired = fine_prune(model, clean, epochs=0)
    assert 4 in gone(repaired.body)
    assert right(repaired, (stamped(clean[0]), clean[1])) > right(model, clean) - 0.1


def test_activations_are_means_after_the_nonlinearity() -> None:
    model, (x, _) = trained()
    body, (layers, many) = _last_map(model, x[:2])
    assert (layers, many) == ([model.second], 16)
    total = torch.zeros(16)
    with torch.no_grad():
        for row in x[:30]:
            total += F.relu(model.second(F.relu(model.first(row[None]))))[0].mean((1, 2))
        assert torch.allclose(_activation(body, model, (x[:30], torch.zeros(30).long())), total / 30, atol=1e-5)


@pytest.mark.parametrize("budget", [0.0, 0.04, 0.3])
def test_it_prunes_as_much_as_the_budget_allows_and_no_more(budget) -> None:
    model, clean = trained()
    held, rest = split(clean, 0.3, seed=0)
    pruned = gone(fine_prune(model, clean, budget=budget, epochs=0).second)
    body, _ = _last_map(model, clean[0][:2])
    with torch.no_grad():
        order = _activation(body, model, rest).argsort().tolist()
        assert sorted(order[: len(pruned)]) == pruned, "the least active channels go, and none is forgotten"
        before, reached = right(model, held), []
        for channel in order[: len(pruned) + 1]:
            model.second.weight[channel], model.second.bias[channel] = 0, 0.0
            reached.append(right(model, held))
    assert reached[-1] < before - budget, "one more would be too many"
    assert len(pruned) == 0 or reached[-2] >= before - budget


def test_a_larger_budget_prunes_more() -> None:
    model, clean = trained()
    many = [len(gone(fine_prune(model, clean, budget=budget, epochs=0).second)) for budget in (0.0, 0.1, 0.5)]
    assert many[0] <= many[1] <= many[2]
    assert many[0] < many[2]


def test_what_is_removed_from_a_residual_network_stays_removed() -> None:
    model, clean = trained(residual=True)
    assert set(_last_map(model.eval(), clean[0][:2])[1].layers) == {
        model.stages[1].conv2,
        model.stages[1].norm2,
        *model.stages[1].shortcut,
    }
    before, after = (fine_prune(model, clean, budget=0.2, epochs=epochs) for epochs in (0, 2))
    pruned = gone(before.stages[1].norm2)
    assert pruned
    for repaired in (before, after):
        with torch.no_grad(), inputs_of(repaired.head) as seen:
            repaired(digits(False)[0])
        assert (seen[0] == 0).all(0).nonzero().flatten().tolist() == pruned
    assert not torch.equal(before.head.weight, after.head.weight), "and the rest was fine-tuned"


def test_it_repairs_a_copy() -> None:
    check_a_copy_is_repaired(partial(fine_prune, epochs=1), *trained())


@pytest.mark.parametrize(
    ("model", "why"),
    [(Flat(), "last layer reads what convolutions write"), (Untraceable(), "graph torch.fx can trace")],
)
def test_what_cannot_work_is_refused(model, why) -> None:
    with pytest.raises(ValueError, match=why):
        fine_prune(model, trained()[1])


def test_too_few_rows_are_refused() -> None:
    with pytest.raises(ValueError, match="some to hold out, got 1 rows"):
        fine_prune(SmallCNN(width=2), (torch.rand(1, 1, 8, 8), torch.tensor([0])))
