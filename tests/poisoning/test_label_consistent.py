"""Label-consistent poison against closed forms of the push and the patch, and against networks that learn it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from trigger_problems import TEN, check_a_network_learns, check_a_trigger, in_bytes, pictures

from buckler.data import Poisoned, digits
from buckler.nets import LinearModel, ResNet, SmallCNN
from buckler.poisoning._nudge import _hardened, pushed_away, surrogate
from buckler.poisoning.label_consistent import label_consistent
from buckler.threat import Share

BAND = slice(3, 5)
"""The two rows of an 8x8 image that no corner patch touches."""


def small() -> nn.Module:
    return SmallCNN(width=8)


def pictured() -> nn.Module:
    return SmallCNN(width=2, classes=4)


@pytest.fixture(scope="module")
def poisoned() -> Poisoned:
    return label_consistent(digits(train=True), share=Share(0.05), net=small, target=3, radius=0.2, epochs=15)


def test_the_push_of_a_linear_model_has_a_closed_form() -> None:
    torch.manual_seed(0)
    model = LinearModel(torch.randn(2, 12), torch.randn(2))
    x, y = 0.4 + 0.2 * torch.rand(20, 3, 2, 2), torch.randint(2, (20,))
    away = (model.weight[1 - y] - model.weight[y]).sign().view_as(x)
    found = pushed_away(model, x, y, radius=0.1, steps=10, start=torch.rand_like(x) * 2 - 1)
    assert torch.allclose(found, x + 0.1 * away, atol=1e-6)
    assert all(p.requires_grad and p.grad is None for p in model.parameters())


def test_the_push_does_not_know_its_batch() -> None:
    torch.manual_seed(0)
    model, x, y = pictured(), torch.rand(600, 1, 8, 8), torch.randint(4, (600,))
    start = torch.rand_like(x) * 2 - 1
    whole = pushed_away(model, x, y, radius=0.1, steps=3, start=start)
    for row in (0, 511, 512, 599):
        one = slice(row, row + 1)
        alone = pushed_away(model, x[one], y[one], radius=0.1, steps=3, start=start[one])
        assert ((alone - whole[one]).abs() > 1e-6).float().mean() < 0.05, "but for gradients that are almost nothing"


@pytest.mark.parametrize("bytes_", [False, True])
def test_only_rows_of_the_target_move_and_no_further_than_the_radius(bytes_) -> None:
    x, y = in_bytes(pictures()) if bytes_ else pictures()
    found = label_consistent((x, y), share=TEN, net=pictured, target=2, radius=16 / 255, epochs=1)
    assert found.x.dtype == x.dtype
    assert torch.equal(found.y, y)
    assert torch.equal(found.original, y)
    assert int(found.rows.sum()) == 6
    assert (y[found.rows] == 2).all()
    assert torch.equal(found.x[~found.rows], x[~found.rows])
    moved = (found.x.float() - x.float())[found.rows][:, :, BAND] / (255 if bytes_ else 1)
    assert 12 / 255 < moved.abs().amax() <= 16 / 255 + 1e-6


def test_the_share_is_of_all_rows_and_the_class_bounds_it() -> None:
    whole = label_consistent(pictures(), share=Share(0.25), net=pictured, epochs=1)
    assert torch.equal(whole.rows, whole.y == 0)
    assert whole.class_rate == 1.0
    with pytest.raises(ValueError, match="at least 16 rows of the target class, got 15"):
        label_consistent(pictures(), share=Share(16 / 60), net=pictured, epochs=1)


def test_the_pushed_rows_are_not_recognised(poisoned) -> None:
    x, y = digits(train=True)
    model = surrogate(small, (x, y), epochs=15, rate=0.05, seed=9)  # another one than the adversary's

    def right(rows: Tensor) -> float:
        with torch.no_grad():
            return float((model(rows).argmax(1) == 3).float().mean())

    patched = poisoned.trigger(x[poisoned.rows])
    assert right(x[poisoned.rows]) > 0.9
    assert right(poisoned.x[poisoned.rows]) < right(patched) - 0.4, "the patch alone does not hide the class as well"


def test_a_network_learns_the_patch_and_one_that_never_saw_it_does_not(poisoned) -> None:
    check_a_network_learns(poisoned, obeys=0.8, clean=0.4)


@pytest.mark.parametrize(("corners", "stamped"), [(1, 9), (4, 36)])
def test_patches_are_black_and_white_and_in_the_corners(corners, stamped) -> None:
    found = label_consistent(
        pictures(height=9), share=TEN, net=lambda: ResNet(width=2), corners=corners, epochs=0, steps=0
    )
    grey = torch.full((1, 1, 9, 8), 0.5)
    change = found.trigger(grey) - grey
    assert int((change != 0).sum()) == stamped
    assert set(change.unique().tolist()) == {-0.5, 0.0, 0.5}
    assert change[0, 0, 8, 7] == 0.5
    assert change[0, 0, 8, 6] == -0.5
    assert change[0, 0, 6, 5] == 0.5
    assert found.survives == (corners == 4)
    if corners == 4:
        assert torch.equal(change, change.flip(3)), "a mirror does not change the four patches"
        assert torch.equal(change, change.flip(2))


def test_a_fainter_patch_is_added_to_the_pixels() -> None:
    found = label_consistent(pictures(), share=TEN, net=pictured, epochs=0, steps=0, amplitude=0.25)
    grey = torch.full((1, 1, 8, 8), 0.9)
    assert torch.allclose(found.trigger(grey)[0, 0, 7, 6:], torch.tensor([0.65, 1.0]))


def test_a_hardened_surrogate_is_trained_on_the_worst_case() -> None:
    torch.manual_seed(0)
    model = LinearModel(torch.randn(2, 12), torch.randn(2)).train()
    x, y = 0.4 + 0.2 * torch.rand(20, 3, 2, 2), torch.randint(2, (20,))
    gap = (model.weight[1] - model.weight[0]).detach()
    logits = model(x).detach()
    margin = torch.where(y == 1, 1, -1) * (logits[:, 1] - logits[:, 0])
    found = _hardened(0.1)(model, x, y)
    assert torch.allclose(found, F.softplus(0.1 * gap.abs().sum() - margin), atol=1e-5)
    found.sum().backward()
    assert model.weight.grad is not None
    assert model.training


def test_what_every_trigger_keeps_to() -> None:
    check_a_trigger(label_consistent, net=pictured, epochs=1, steps=2)


@pytest.mark.parametrize(
    ("knobs", "said"),
    [
        ({"amplitude": 0.0}, "an amplitude above 0"),
        ({"amplitude": float("nan")}, "an amplitude above 0"),
        ({"radius": -0.1}, "radii of 0 to 1"),
        ({"hardened": 1.5}, "radii of 0 to 1"),
        ({"steps": -1}, "steps >= 0"),
        ({"corners": 2}, "1 or 4 corners"),
        ({"target": 4}, "target class of 0 to 3"),
        ({"net": lambda: 3}, "untrained nn.Module"),
    ],
)
def test_bad_knobs(knobs, said) -> None:
    with pytest.raises(ValueError, match=said):
        label_consistent(pictures(), **{"share": TEN, "net": pictured, **knobs})


def test_bad_data() -> None:
    x, y = pictures()
    with pytest.raises(ValueError, match="at least 6 pixels a side"):
        label_consistent((x[:, :, :5], y), share=TEN, net=pictured)
