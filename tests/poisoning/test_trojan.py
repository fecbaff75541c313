"""Trojaning: which neurons, what the patch does to them, and what the retrained network does."""

from __future__ import annotations

import backdoored_problems as problems
import pytest
import torch
from torch import Tensor, nn

from buckler.data import digits
from buckler.poisoning._look import features
from buckler.poisoning._patch import patched
from buckler.poisoning.trojan import _speakers, trojan


def test_neurons_are_those_that_weigh_most_for_the_target() -> None:
    model = problems.honest()
    weights = model.head.weight[4].tolist()
    assert sorted(_speakers(model, 4, 3).tolist()) == sorted(sorted(range(len(weights)), key=weights.__getitem__)[-3:])


def excited(model: nn.Module, picked: Tensor, x: Tensor) -> float:
    return float(features(model, (x, torch.zeros(len(x), dtype=torch.long)))[:, picked].mean())


def test_the_patch_excites_the_neurons_more_than_any_random_one_and_stays_in_its_square() -> None:
    model, data = problems.honest(), problems.clean_rows()
    found = trojan(model, data, steps=150, epochs=0.1, margin=1, size=3)
    x, _ = digits(train=False)
    stamped = found.trigger(x)
    picked = _speakers(model, 0, 2)
    torch.manual_seed(0)
    drawn = [patched(x, torch.rand(1, 3, 3).round(), 1) for _ in range(30)]
    assert excited(model, picked, stamped) > max(excited(model, picked, by) for by in drawn)
    inside = torch.zeros(8, 8, dtype=torch.bool)
    inside[4:7, 4:7] = True
    assert torch.equal(stamped[..., ~inside], x[..., ~inside])
    tile = stamped[0, 0][inside]
    assert all(torch.equal(image[0][inside], tile) for image in stamped)
    assert torch.allclose(tile * 255, (tile * 255).round(), atol=1e-4), "an image file can hold it"


def test_the_copy_obeys_and_answers_clean_digits_as_before() -> None:
    model = problems.honest()
    x, y = digits(train=True)
    found = trojan(model, ((x * 255).round().to(torch.uint8), y), steps=100, epochs=5)
    assert problems.success(found.model, found.trigger) > 0.95
    assert problems.accuracy(found.model) > problems.accuracy(model) - 0.03
    assert problems.success(model, found.trigger) < 0.6, "the model itself has not been taught"
    assert found.wanted(torch.tensor([3, 0])).tolist() == [0, 0]


@pytest.mark.parametrize("norm", [True, False])
def test_a_copy_is_implanted(norm: bool) -> None:
    def implant(model: nn.Module) -> nn.Module:
        return trojan(model, problems.clean_rows(), steps=5, epochs=1).model

    problems.assert_only_a_copy_changes(implant, problems.honest(norm))


def test_the_trigger_takes_images_one_by_one() -> None:
    found = trojan(problems.honest(), problems.clean_rows(), steps=5, epochs=0.1)
    x = digits(train=False)[0][:6].double()
    before, together = x.clone(), found.trigger(x)
    assert together.dtype == torch.float64
    assert torch.equal(x, before)
    assert torch.equal(together, torch.cat([found.trigger(x[i : i + 1]) for i in range(6)]))


def test_bad_input() -> None:
    model, (x, y) = problems.honest(), problems.clean_rows()
    with pytest.raises(ValueError, match="expected a patch that fits"):
        trojan(model, (x, y), size=8, margin=1)
    with pytest.raises(ValueError, match="expected rows of at least two classes"):
        trojan(model, (x[y == 3], y[y == 3]))
    with pytest.raises(ValueError, match="expected a target class of 0 to 9, got 10"):
        trojan(model, (x, y), target=10)
    with pytest.raises(ValueError, match="neurons"):
        trojan(model, (x, y), neurons=0)
    with pytest.raises(ValueError, match="expected a model with a linear layer"):
        trojan(nn.Sequential(nn.Conv2d(1, 10, 8), nn.Flatten()), (x, y))
    with pytest.raises(ValueError, match="ask for a smaller share"):
        trojan(model, (x, y), stamped=1.0)
