"""Augmentation against every result that there can be, tried one by one; and against ramps, whose warps are known."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from buckler.augment import chained, cropped, erased, flip, jittered, shifted, turned

SEEDED = 400


@pytest.fixture
def x() -> Tensor:
    torch.manual_seed(0)
    return torch.rand(SEEDED, 2, 5, 7) * 0.9 + 0.1


def which(after: Tensor, candidates: list[Tensor]) -> int:
    found = [number for number, candidate in enumerate(candidates) if torch.equal(after, candidate)]
    assert found, "a result that there cannot be"
    return found[0]


def test_flip_mirrors_about_half_of_the_images(x) -> None:
    after = flip(x)
    mirrored = [which(after[row], [x[row], x[row].flip(2)]) for row in range(SEEDED)]
    assert abs(sum(mirrored) - SEEDED / 2) < 5 * math.sqrt(SEEDED) / 2


def moved(down: int, across: int) -> Tensor:
    """The number of the pixel that comes to lie at every place of 5 x 7, counted from 1; 0 is black."""
    out = torch.zeros(5, 7, dtype=torch.int64)
    for i in range(5):
        for j in range(7):
            if 0 <= i - down < 5 and 0 <= j - across < 7:
                out[i, j] = 1 + (i - down) * 7 + (j - across)
    return out


def test_shifted_moves_each_way_as_far_as_asked_and_no_further(x) -> None:
    after = shifted(2)(x)
    steps = [moved(down, across) for down in range(-2, 3) for across in range(-2, 3)]
    numbered = torch.cat([torch.zeros(SEEDED, 2, 1), x.flatten(2)], 2)
    seen = [which(after[row], [numbered[row][:, step] for step in steps]) for row in range(SEEDED)]
    assert set(seen) == set(range(25)), "every step occurs"
    assert max(seen.count(step) for step in range(25)) < 40, "about 16 times each"


def test_shifted_by_nothing_is_nothing(x) -> None:
    assert torch.equal(shifted(0)(x), x)


@pytest.mark.parametrize("size", [1, 2, 3])
def test_erased_blackens_one_square_that_may_reach_over_the_edge(x, size) -> None:
    after = erased(size)(x)
    places = [(top, left) for top in range(5) for left in range(7)]
    candidates: list[Tensor] = []
    for top, left in places:
        keep = torch.ones(5, 7)
        for i in range(top - size // 2, top - size // 2 + size):
            for j in range(left - size // 2, left - size // 2 + size):
                if 0 <= i < 5 and 0 <= j < 7:
                    keep[i, j] = 0
        candidates.append(keep)
    seen = {which((after[row] != 0).float(), [keep.expand(2, 5, 7) for keep in candidates]) for row in range(SEEDED)}
    assert seen == set(range(35)), "every place occurs"
    assert torch.equal(after[after != 0], x[after != 0])


def ramps(side: int = 41) -> Tensor:
    """Images that rise by one per pixel of the middle: across in the first channel, down in the second."""
    steps = torch.arange(side, dtype=torch.float64) - (side - 1) / 2
    image = torch.stack([steps.expand(side, side), steps[:, None].expand(side, side)])
    return image.expand(64, -1, -1, -1).clone()


def slopes(after: Tensor) -> tuple[Tensor, Tensor]:
    """How each channel rises across and down, about the middle: two times `(B, 2)`."""
    middle = after.shape[-1] // 2
    near = after[:, :, middle - 3 : middle + 4, middle - 3 : middle + 4]
    across, down = near.diff(dim=3), near.diff(dim=2)
    assert torch.allclose(across, across[:, :, :1, :1], atol=1e-6), "the warp is affine"
    assert torch.allclose(down, down[:, :, :1, :1], atol=1e-6)
    return across[:, :, 0, 0], down[:, :, 0, 0]


def test_turned_by_nothing_is_nothing(x) -> None:
    assert torch.allclose(turned(0)(x), x, atol=1e-5)


def test_turned_rotates_as_far_as_asked() -> None:
    across, down = slopes(turned(30)(ramps()))
    assert torch.allclose(across.norm(dim=1), torch.ones(64).double(), atol=1e-6), "no zoom"
    assert torch.allclose((across * down).sum(1), torch.zeros(64).double(), atol=1e-6), "no shear"
    angle = torch.rad2deg(torch.atan2(across[:, 1], across[:, 0]))
    assert angle.abs().max() <= 30
    assert angle.min() < -20
    assert angle.max() > 20


def test_turned_zooms_as_far_as_asked() -> None:
    across, down = slopes(turned(0, scale=0.2)(ramps()))
    zoom = 1 / across[:, 0]
    assert torch.allclose(across[:, 0], down[:, 1])
    assert zoom.min() >= 0.8 - 1e-9
    assert zoom.max() <= 1.2 + 1e-9
    assert zoom.max() - zoom.min() > 0.3


def test_turned_moves_as_far_as_asked() -> None:
    plain = ramps()
    step = (turned(0, shift=0.1)(plain) - plain)[:, :, 20, 20] / 41
    assert step.abs().max() <= 0.1 + 1e-9
    assert (step.amin(0) < -0.07).all()
    assert (step.amax(0) > 0.07).all()
    assert abs(float(torch.corrcoef(step.T)[0, 1])) < 0.4, "across and down are drawn apart"


def test_chained_goes_in_order(x) -> None:
    double_then_half = chained(lambda image: image * 2, lambda image: image.clamp(max=1))
    assert torch.equal(double_then_half(x), (x * 2).clamp(max=1))
    assert torch.equal(chained()(x), x)


@pytest.mark.parametrize("augment", [flip, shifted(2), erased(2), turned(20, 0.1, 0.1), chained(flip, shifted(1))])
def test_the_global_random_state_decides_and_the_batch_is_left_alone(x, augment) -> None:
    before = x.clone()
    torch.manual_seed(7)
    first = augment(x)
    torch.manual_seed(7)
    assert torch.equal(augment(x), first)
    assert not torch.equal(augment(x), first)
    assert torch.equal(x, before)
    assert first.shape == x.shape
    assert first.dtype == x.dtype
    assert len((first - x).flatten(1).unique(dim=0)) > 1, "a draw per row"


def grounds(rows: int, high: int = 9, wide: int = 9) -> Tensor:
    """Images whose two channels say where a pixel is, across and down, in [-1, 1] brought to [0, 1]."""
    across, down = ((2 * torch.arange(side) + 1) / side - 1 for side in (wide, high))
    both = torch.stack([across.expand(high, wide), down[:, None].expand(high, wide)])
    return ((both + 1) / 2).expand(rows, 2, high, wide).double()


def test_cropped_shows_a_part_of_the_image_and_never_what_is_outside() -> None:
    torch.manual_seed(0)
    after = cropped(0.2)(grounds(SEEDED))
    inner = after[:, :, 1:-1, 1:-1]  # at the edge the border is repeated
    wide = (inner[:, 0, :, -1] - inner[:, 0, :, 0]).mean(1) * 9 / 6  # the distance of the outermost centres of inner
    high = (inner[:, 1, -1] - inner[:, 1, 0]).mean(1) * 9 / 6
    area, ratio = wide * high, wide / high
    assert (inner[:, 0].std(1) < 1e-6).all(), "columns stay columns"
    assert (area > 0.19).all()
    assert (area < 1.01).all()
    assert area.min() < 0.25
    assert area.max() > 0.9
    assert (ratio.log().abs() < math.log(4 / 3) + 0.01).all()
    assert ratio.max() > 1.2
    assert ratio.min() < 0.83
    assert (after >= 0).all()
    assert (after <= 1).all()


def test_a_part_of_a_long_image_is_as_wide_as_high_in_pixels() -> None:
    after = cropped(0.05, stretch=1.0)(grounds(SEEDED, 8, 24))
    wide = 24 * (after[:, 0, :, -2] - after[:, 0, :, 1]).mean(1) * 24 / 21
    high = 8 * (after[:, 1, -2] - after[:, 1, 1]).mean(1) * 8 / 5
    torch.testing.assert_close(wide[wide < 7.9], high[wide < 7.9], rtol=0.03, atol=0.0)
    assert (wide < 7.9).sum() > 10
    assert wide.max() > 12, "as much as fits, where it is as high as the image"


def test_cropped_keeps_an_image_whole_if_it_has_to() -> None:
    x = grounds(20)
    torch.testing.assert_close(cropped(1.0, stretch=1.0)(x), x)


def test_jittered_changes_light_and_then_contrast_about_the_mean() -> None:
    torch.manual_seed(0)
    x = 0.4 + 0.2 * torch.rand(SEEDED, 2, 5, 5, dtype=torch.float64)  # nothing is clipped
    after = jittered(0.3, 0.5)(x)
    light = after.mean((1, 2, 3)) / x.mean((1, 2, 3))
    assert (light >= 0.7).all()
    assert (light <= 1.3).all()
    assert light.min() < 0.73
    assert light.max() > 1.27
    apart = after.std((1, 2, 3)) / x.std((1, 2, 3)) / light
    assert (apart >= 0.49).all()
    assert (apart <= 1.51).all()
    assert apart.std() > 0.2
    rebuilt = light * (x.mean((1, 2, 3)) + apart * (x - x.mean((1, 2, 3), keepdim=True)).permute(1, 2, 3, 0))
    torch.testing.assert_close(rebuilt.permute(3, 0, 1, 2), after)
    assert abs(float(torch.corrcoef(torch.stack([light, apart]))[0, 1])) < 0.2, "drawn apart"


def test_jittered_stays_in_range() -> None:
    torch.manual_seed(0)
    after = jittered(0.9, 0.9)(torch.rand(SEEDED, 1, 4, 4))
    assert after.min() == 0
    assert after.max() == 1
