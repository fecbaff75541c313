"""Pixel inversion against linear models whose fewest pixels are known, and a backdoor in a network."""

import pytest
import torch
from repair_problems import TARGET, same, state, trained, untrained

from buckler.nets import LinearModel
from buckler.poisoning.pixel_backdoor import _pattern, _pixels, _smooth, pixel_backdoor

NEEDED = [5, 4, 6, 1, 5, 4]


def seven_ways():
    """Every row is grey, which is class 6. Each other class has eight pixels of its own, each worth less than the one
    before, and is reached by turning its first `NEEDED` white (black for odd classes)."""
    worth = 4 * 0.8 ** torch.arange(8)
    weight, bias = torch.zeros(7, 64), torch.zeros(7)
    for label, many in enumerate(NEEDED):
        sign = -1 if label % 2 else 1
        weight[label, 8 * label : 8 * label + 8] = sign * worth
        needed = 0.5 * worth[:many].sum() - 0.15 * worth[many - 1]  # the last one need not go all the way
        bias[label] = -0.5 * weight[label].sum() - needed
    return LinearModel(weight, bias), (torch.full((49, 1, 8, 8), 0.5), torch.arange(49) % 7)


def test_the_fewest_pixels_are_found() -> None:
    model, clean = seven_ways()
    found = pixel_backdoor(model, clean)
    spare = found.mask.flatten(1).sum(1) - torch.tensor([*NEEDED, 0])
    assert ((spare >= 0) & (spare <= 1)).all(), "none can do with fewer"
    for label, many in enumerate(NEEDED):
        assert found.mask[label].flatten()[8 * label : 8 * label + many].all()
        assert (found.pattern[label].sum() < 0) == bool(label % 2)
        x = (clean[0] + found.pattern[label]).clamp(0, 1)
        assert (model(x).argmax(1) == label).all()


def test_parts_are_signed_and_counted_by_pixel() -> None:
    theta = torch.zeros(1, 4, 2, 2)  # two channels up, two down
    theta[0, 0, 0, 0], theta[0, 1, 0, 0], theta[0, 3, 1, 1], theta[0, 2, 0, 1] = 0.5, 0.25, 1.0, 0.003
    assert _pattern(theta)[0, :, 0, 0].tolist() == [0.5, 0.25]
    assert _pattern(theta)[0, :, 1, 1].tolist() == [0, -1]
    assert _pixels(theta).tolist() == [2], "two pixels, and one that eight bits do not show"
    assert _smooth(theta).item() == pytest.approx(0.5 * (0.05 + 0.1 + 0.0003), rel=0.01)


def test_it_finds_a_backdoor_in_a_network() -> None:
    model, clean = trained()
    found = pixel_backdoor(model, clean, steps=120)
    assert found.score.argmax() == TARGET
    assert found.flagged[TARGET]
    assert found.mask[TARGET].sum() <= 9, "no more pixels than the patch has"


def test_the_model_and_the_rows_stay_as_they_are() -> None:
    model, (x, y) = untrained()
    model.train()
    kept, before, draw = state(model), x.clone(), torch.random.get_rng_state()
    first, second = (pixel_backdoor(model, (x, y), steps=6, seed=3) for _ in range(2))
    assert torch.equal(first.pattern, second.pattern)
    assert torch.equal(x, before)
    assert torch.equal(torch.random.get_rng_state(), draw)
    assert same(model, kept)
    assert model.training
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
    assert first.pattern.shape == (10, 1, 8, 8)
    assert float(first.pattern.abs().max()) <= 1


def test_bad_input_is_refused() -> None:
    model = LinearModel(torch.zeros(3, 64), torch.zeros(3))
    with pytest.raises(ValueError, match="two classes, got 4"):
        pixel_backdoor(model, (torch.rand(4, 1, 8, 8), torch.ones(4).long()))
    with pytest.raises(ValueError, match="expected images"):
        pixel_backdoor(model, (torch.rand(4, 64), torch.arange(4) % 2))
