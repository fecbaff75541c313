"""Adversarial neuron pruning against edits by hand, a plain search for the threshold, and a planted backdoor."""

from __future__ import annotations

import copy

import backdoored_problems as problems
import pytest
import torch
from torch import nn

from buckler.data import digits
from buckler.poisoning._masks import Masked, pruned
from buckler.poisoning.anp import _worst, anp

FEW = {"steps": 60, "batch": 64}


def edited(model: nn.Module, mask: torch.Tensor, noise: torch.Tensor, kind: type[nn.Module]) -> nn.Module:
    """The masked and perturbed model, layer after layer, channel after channel, written into the weights."""
    out, place = copy.deepcopy(model), 0
    for layer in out.modules():
        if isinstance(layer, kind):
            for channel in range(len(layer.weight)):
                layer.weight.data[channel] *= mask[place] + noise[0, place]
                if layer.bias is not None:
                    layer.bias.data[channel] *= 1 + noise[1, place]
                place += 1
    assert place == len(mask)
    return out


@pytest.mark.parametrize("norm", [True, False])
def test_masks_act_as_edits_of_the_weights_do(norm: bool) -> None:
    model = problems.backdoored(norm)
    masked = Masked(copy.deepcopy(model)).eval()
    torch.manual_seed(0)
    masked.mask.data = torch.rand_like(masked.mask)
    noise = torch.rand(2, len(masked.mask)) - 0.5
    by_hand = edited(model, masked.mask.detach(), noise, nn.BatchNorm2d if norm else nn.Conv2d)
    x = digits(train=False)[0][:20]
    with torch.no_grad():
        assert torch.allclose(masked(x, noise), by_hand(x), atol=1e-5)
        by_hand = edited(model, masked.mask.detach(), 0 * noise, nn.BatchNorm2d if norm else nn.Conv2d)
        assert torch.allclose(masked(x), by_hand(x), atol=1e-5)


def test_the_perturbation_is_within_its_bound_and_worse_than_a_random_one() -> None:
    x, y = problems.clean_rows()
    masked = Masked(copy.deepcopy(problems.backdoored())).eval()
    loss = nn.CrossEntropyLoss()
    torch.manual_seed(0)
    found = [_worst(masked, x, y, 0.4) for _ in range(3)]
    assert all(float(noise.abs().max()) <= 0.4 + 1e-6 for noise in found)
    drawn = [(torch.rand_like(found[0]) * 2 - 1) * 0.4 for _ in range(20)]
    with torch.no_grad():
        assert min(loss(masked(x, noise), y) for noise in found) > max(loss(masked(x, noise), y) for noise in drawn)


def given(model: nn.Module, mask: torch.Tensor, early: torch.Tensor) -> Masked:
    masked = Masked(copy.deepcopy(model))
    masked.mask.data, masked.early = mask, early
    return masked


def largest(model: nn.Module, orders: list[torch.Tensor], budget: float) -> tuple[int, nn.Module]:
    """The last of ever larger sets of channels that loses no more than the budget, and the model without them."""
    x, y = problems.clean_rows()
    base = (problems.answers(model, x) == y).double().mean()
    found = (0, model)
    for index, channels in enumerate(orders):
        kept = torch.ones(sum(len(m.weight) for m in model.modules() if isinstance(m, nn.BatchNorm2d)))
        kept[channels] = 0
        trial = edited(model, kept, torch.zeros(2, len(kept)), nn.BatchNorm2d)
        if (problems.answers(trial, x) == y).double().mean() >= base - budget:
            found = index, trial
    return found


def same(one: nn.Module, other: nn.Module) -> bool:
    return all(torch.equal(value, other.state_dict()[name]) for name, value in one.state_dict().items())


def test_the_threshold_is_the_largest_that_keeps_accuracy() -> None:
    model = problems.backdoored()
    torch.manual_seed(1)
    mask = 0.05 + torch.rand_like(Masked(copy.deepcopy(model)).mask.data) * 3
    index, expected = largest(model, [(mask <= step / 20).nonzero()[:, 0] for step in range(19)], 0.1)
    assert 1 < index < 18, "some thresholds must be too high, or this compares nothing"
    assert same(pruned(model, given(model, mask, 0 * mask), problems.clean_rows(), 0.1), expected)


def test_channels_that_tie_at_zero_go_in_the_order_in_which_they_came_there() -> None:
    model = problems.backdoored()
    torch.manual_seed(2)
    mask = torch.zeros_like(Masked(copy.deepcopy(model)).mask.data)
    early = torch.randperm(len(mask)).to(mask)
    order = early.argsort(descending=True)
    index, expected = largest(model, [order[: len(mask) * part // 20] for part in range(20)], 0.3)
    assert 0 < index < 19, "some must be too many, or this compares nothing"
    assert same(pruned(model, given(model, mask, early), problems.clean_rows(), 0.3), expected)


def test_a_backdoor_is_cut_out() -> None:
    model = problems.backdoored()
    assert problems.success(model, problems.poison().trigger) > 0.9
    repaired = anp(model, problems.clean_rows(), steps=400, batch=64)
    assert problems.success(repaired, problems.poison().trigger) < 0.3
    assert problems.accuracy(repaired) > problems.accuracy(model) - 0.1


def test_an_honest_model_keeps_its_accuracy() -> None:
    model = problems.honest()
    assert problems.accuracy(anp(model, problems.clean_rows(), steps=200, batch=64)) > problems.accuracy(model) - 0.1


@pytest.mark.parametrize("norm", [True, False])
def test_a_copy_is_pruned(norm: bool) -> None:
    problems.assert_only_a_copy_changes(lambda m: anp(m, problems.clean_rows(), **FEW), problems.backdoored(norm))


def test_bytes_are_as_good_as_floats() -> None:
    x, y = problems.clean_rows()
    model = problems.backdoored()
    held_as_bytes = (x * 255).round().to(torch.uint8)
    one, other = anp(model, (held_as_bytes, y), **FEW), anp(model, (held_as_bytes.float() / 255, y), **FEW)
    assert all(torch.equal(value, other.state_dict()[name]) for name, value in one.state_dict().items())


def test_bad_input() -> None:
    model, (x, y) = problems.backdoored(), problems.clean_rows()
    with pytest.raises(ValueError, match="expected a model with batch norm or convolutions"):
        anp(nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), (x, y))
    with pytest.raises(ValueError, match="expected rows of at least two classes"):
        anp(model, (x[y == 3], y[y == 3]))
    with pytest.raises(ValueError, match="expected rows to train masks on and some to hold out"):
        anp(model, (x[:2], torch.tensor([0, 1])), held=0.1)
    with pytest.raises(ValueError, match="expected a budget"):
        anp(model, (x, y), budget=5, **FEW)
