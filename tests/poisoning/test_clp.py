"""Channel Lipschitz pruning against singular values of numpy, planted channels, and pairs that only the graph shows."""

import numpy as np
import pytest
import torch
from repair_problems import Flat, Untraceable, check_a_copy_is_repaired, untrained
from torch import nn
from torch.nn import functional as F

from buckler.nets import SmallCNN
from buckler.poisoning.clp import _bounds, clp

CLEAN = (torch.rand(4, 1, 8, 8), torch.tensor([0, 1, 2, 3]))


class NormFirst(nn.Module):
    """Convolutions are written down before the batch norms, in the other order, and one batch norm follows none."""

    def __init__(self, width=16):
        super().__init__()
        self.second = nn.Conv2d(width, width, 3, padding=1)
        self.first = nn.Conv2d(1, width, 3, padding=1)
        self.after_first, self.free, self.after_second = (nn.BatchNorm2d(width) for _ in range(3))
        self.head = nn.Linear(width, 10)

    def forward(self, x):
        x = F.relu(self.after_first(self.first(x)))
        x = F.relu(self.after_second(self.second(F.relu(self.free(x)))))
        return self.head(x.mean((2, 3)))


def silent(norm):
    return ((norm.weight == 0) & (norm.bias == 0)).nonzero().flatten().tolist()


def test_bounds_are_the_largest_singular_values_times_the_norms_factor() -> None:
    torch.manual_seed(0)
    convolution, norm = nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6)
    nn.init.normal_(norm.weight)
    norm.running_var.uniform_(0.1, 2)
    got = _bounds(convolution, norm).detach().numpy()
    for channel in range(6):
        matrix = convolution.weight[channel].detach().numpy().reshape(4, 9)
        factor = abs(norm.weight[channel].item()) / np.sqrt(norm.running_var[channel].item() + norm.eps)
        assert got[channel] == pytest.approx(np.linalg.svd(matrix)[1][0] * factor, rel=1e-4)


@pytest.mark.parametrize("how", ["filter", "weight", "variance"])
def test_a_sharp_channel_is_silenced_and_no_other(how) -> None:
    model, _ = untrained()
    block = model.stages[1]
    with torch.no_grad():
        if how == "filter":
            block.conv1.weight[5] *= 40
        elif how == "weight":
            block.norm1.weight[5] *= -40
        else:
            block.norm1.running_var[5] /= 1600
    block.norm1.bias.data.fill_(0.1)
    repaired = clp(model, CLEAN, deviations=3.5)
    assert silent(repaired.stages[1].norm1) == [5]
    others = [m for name, m in repaired.named_modules() if isinstance(m, nn.BatchNorm2d) and name != "stages.1.norm1"]
    assert all(silent(norm) == [] for norm in others)


def test_pairs_are_those_of_the_graph() -> None:
    torch.manual_seed(0)
    model = NormFirst().eval()
    with torch.no_grad():
        model.first.weight[7] *= 40
        model.second.weight[2] *= 40
    repaired = clp(model, CLEAN)
    assert (silent(repaired.after_first), silent(repaired.free), silent(repaired.after_second)) == ([7], [], [2])


def test_without_an_outlier_the_model_answers_the_same() -> None:
    model = untrained()[0].eval()
    assert torch.equal(clp(model, CLEAN, deviations=4.0)(CLEAN[0]), model(CLEAN[0]))


def test_fewer_deviations_silence_more() -> None:
    model, clean = untrained()
    many = []
    for deviations in (3.0, 1.0, -9.0):
        repaired = clp(model, clean, deviations=deviations)
        many.append(sum(len(silent(m)) for m in repaired.modules() if isinstance(m, nn.BatchNorm2d)))
    assert many[0] < many[1] < many[2] == sum(m.num_features for m in model.modules() if isinstance(m, nn.BatchNorm2d))


def test_it_repairs_a_copy() -> None:
    check_a_copy_is_repaired(clp, *untrained())


@pytest.mark.parametrize(
    ("model", "why"),
    [
        (SmallCNN(width=2), "convolution followed by batch norm, got none"),
        (Flat(), "convolution followed by batch norm, got none"),
        (Untraceable(), "graph torch.fx can trace"),
        (nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4, track_running_stats=False)), "running statistics"),
    ],
)
def test_what_cannot_work_is_refused(model, why) -> None:
    with pytest.raises(ValueError, match=why):
        clp(model, CLEAN)
