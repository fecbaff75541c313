"""What the defences look at, against the network itself."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from buckler.nets import ResNet, SmallCNN
from buckler.poisoning._look import accuracy, features, inputs_of, last_linear, logits, losses, outputs, where
from buckler.train import started


def rows(many: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.rand(many, 1, 8, 8, generator=generator), torch.randint(0, 10, (many,), generator=generator)


@pytest.mark.parametrize("many", [1, 512, 700], ids=["one row", "one batch", "more than a batch"])
def test_every_row_is_seen_once_and_in_order(many) -> None:
    network = started(lambda: ResNet(width=4), 0).eval()
    data = rows(many)
    with torch.no_grad():
        said = network(data[0])
        pooled = network.stages(network.stem(data[0])).mean((2, 3))
    assert torch.allclose(logits(network, data), said, atol=1e-5)
    assert torch.allclose(features(network, data), pooled, atol=1e-5)
    assert torch.allclose(losses(network, data), F.cross_entropy(said, data[1], reduction="none"), atol=1e-5)
    right = sum(int(row.argmax()) == int(label) for row, label in zip(said, data[1], strict=True))
    assert accuracy(network, data) == right / many, "in double precision: a tenth is at chance, not above it"


def test_features_are_what_the_last_linear_layer_reads() -> None:
    network = started(lambda: SmallCNN(width=4), 0).eval()
    data = rows(20)
    assert last_linear(network) is network.head
    assert torch.allclose(network.head(features(network, data)), network(data[0]), atol=1e-6)


def test_bytes_are_read_as_numbers_up_to_one() -> None:
    network = started(lambda: SmallCNN(width=4), 0).eval()
    x, y = rows(20)
    held = (x * 255).round().to(torch.uint8)
    assert torch.allclose(features(network, (held, y)), features(network, (held.float() / 255, y)))


def test_the_network_is_evaluated_and_left_as_it_was() -> None:
    network = started(lambda: ResNet(width=4), 0).train()
    network.stem.eval()
    next(network.head.parameters()).requires_grad_(False)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    modes = [module.training for module in network.modules()]
    wants = [parameter.requires_grad for parameter in network.parameters()]
    assert outputs(network, rows(30)) == 10
    for look in (logits, losses, features):
        first, again = look(network, rows(30)), look(network, rows(30))
        assert torch.equal(first, again), "batch norm is not moved and no neuron dropped"
        assert not first.requires_grad
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert [module.training for module in network.modules()] == modes
    assert [parameter.requires_grad for parameter in network.parameters()] == wants
    assert not any(module._forward_pre_hooks for module in network.modules())


def test_hooks_are_taken_off_when_the_network_raises() -> None:
    network = SmallCNN(width=4)
    with pytest.raises(RuntimeError):
        features(network, (torch.rand(4, 3, 8, 8), torch.zeros(4, dtype=torch.long)))
    assert not any(module._forward_pre_hooks for module in network.modules())


def test_a_layer_shows_each_of_its_inputs() -> None:
    network = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    x = torch.rand(3, 2)
    with inputs_of(network[1]) as seen:
        network(x)
        network(2 * x)
    assert len(seen) == 2
    assert torch.equal(seen[1], network[0](2 * x))
    network(x)
    assert len(seen) == 2


def test_it_looks_where_the_network_is() -> None:
    assert where(nn.Linear(1, 1).to("meta")) == torch.device("meta")
    assert where(nn.ReLU()) == torch.device("cpu")
    assert where(nn.BatchNorm1d(1, affine=False).to("meta")) == torch.device("meta")


@pytest.mark.parametrize(
    ("network", "said"),
    [
        (nn.Identity(), r"scores \(1, K\), got \(1, 1, 8, 8\)"),
        (nn.Flatten(0), r"scores \(1, K\), got \(64,\)"),
        (nn.MultiheadAttention(8, 1), "scores .*, got tuple"),
        (nn.Sequential(nn.Flatten(), nn.Linear(64, 9)), "labels of 0 to 8, as the model has, got 9"),
    ],
)
def test_what_does_not_answer_rows_and_their_labels_is_refused(network, said) -> None:
    if isinstance(network, nn.MultiheadAttention):
        attend = network.forward
        network.forward = lambda x: attend(*[x[:, 0]] * 3)
    with pytest.raises(ValueError, match=said):
        outputs(network, rows(60))
    x, y = rows(60)
    assert outputs(nn.Sequential(nn.Flatten(), nn.Linear(64, 9)), ((x * 255).to(torch.uint8), y.clamp_max(8))) == 9


def test_a_network_without_a_linear_layer_has_no_features() -> None:
    with pytest.raises(ValueError, match="expected a model with a linear layer"):
        features(nn.Sequential(nn.Conv2d(1, 3, 8), nn.Flatten()), rows(3))
