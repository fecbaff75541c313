"""Rows out of gradients: closed forms, a small network inverted, labels counted, and gradients that tell nothing."""

from __future__ import annotations

import copy
from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from buckler.pictures import psnr
from buckler.privacy._gradients import Gradients, gradients, size, told_labels, total_variation
from buckler.privacy._reconstruction import DEFENCES
from buckler.privacy.gradient_inversion import gradient_inversion
from buckler.train import started

SHAPE = (1, 8, 8)
quick = partial(gradient_inversion, shape=SHAPE, steps=200)


def small(*, bias: bool = True) -> nn.Module:
    def build() -> nn.Module:
        return nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 3, 2, 1), nn.ReLU(),
            nn.Flatten(), nn.Linear(256, 10, bias=bias),
        )  # fmt: skip

    return started(build, 0).eval()


def smooth_rows(many: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    coarse = torch.rand(many, 1, 4, 4, generator=draw)
    return F.interpolate(coarse, size=8, mode="bilinear"), torch.randint(0, 10, (many,), generator=draw)


def test_gradients_are_those_of_the_loss() -> None:
    model, (x, y) = small(), smooth_rows(3)
    expected = torch.autograd.grad(F.cross_entropy(model(x), y), list(model.parameters()))
    for got, own in zip(gradients(model, x, y), expected, strict=True):
        assert torch.allclose(got, own, atol=1e-7)
    soft = gradients(model, x, F.one_hot(y, 10).float())
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(soft, expected, strict=True))


def test_a_first_linear_layer_with_a_bias_gives_its_input_away() -> None:
    """Of one row, dL/dW_i = dL/db_i x, whatever comes after (Phong et al., IEEE TIFS 13, 2018)."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 20), nn.Sigmoid(), nn.Linear(20, 10)).eval()
    x, y = smooth_rows(1)
    update = gradients(model, x, y)
    row = int(update[1].abs().argmax())
    exact = (update[0][row] / update[1][row]).view(1, *SHAPE)
    assert torch.allclose(exact, x, atol=1e-4)
    assert float(psnr(quick(model, update, steps=400).x, exact)) > 25


def test_one_row_of_an_untrained_network_is_rebuilt_beyond_25_db() -> None:
    model, (x, y) = small(), smooth_rows(2)
    for row in range(2):
        made = quick(model, gradients(model, x[row : row + 1], y[row : row + 1]), seed=1)
        assert float(psnr(made.x, x[row : row + 1])) > 25
        assert made.y is not None
        assert int(made.y) == int(y[row])


def test_an_update_of_noise_tells_no_row() -> None:
    model, (x, y) = small(), smooth_rows(1)
    true = gradients(model, x, y)
    draw = torch.Generator().manual_seed(0)
    noise = tuple(torch.randn(one.shape, generator=draw) * one.std() for one in true)
    prior = float(psnr(torch.full_like(x, 0.5), x))
    assert float(psnr(quick(model, noise).x, x)) < prior < float(psnr(quick(model, true).x, x))


@pytest.mark.parametrize("bias", [True, False])
def test_the_label_of_one_row_is_told_exactly(bias: bool) -> None:
    model, (x, y) = small(bias=bias), smooth_rows(40)
    for row in range(40):
        told = told_labels(model, gradients(model, x[row : row + 1], y[row : row + 1]), 1)
        assert int(told) == int(y[row])


def test_labels_of_a_batch_are_counted() -> None:
    """With a bias and even answers the counts are exact, repeated labels included."""
    model, (x, _) = small(), smooth_rows(6)
    y = torch.tensor([3, 3, 3, 0, 9, 9])
    assert told_labels(model, gradients(model, x, y), 6).tolist() == [0, 3, 3, 3, 9, 9]
    flat = small(bias=False)
    assert told_labels(flat, gradients(flat, x, y), 6).tolist() == [0, 3, 3, 3, 9, 9]


def test_an_attacker_who_is_told_of_pruning_goes_further() -> None:
    model, (x, y) = small(), smooth_rows(1)
    defence, draw = DEFENCES["pruned"], torch.Generator().manual_seed(0)
    sent = defence.apply(gradients(model, x, y), draw)
    assert float(sum((one != 0).sum() for one in sent)) <= 0.1 * sum(one.numel() for one in sent) + 1
    blind, told = quick(model, sent).x, quick(model, sent, through=defence.through(sent)).x
    assert float(psnr(told, x)) > float(psnr(blind, x)) + 5


def test_defences_do_what_they_say() -> None:
    model, (x, y) = small(), smooth_rows(1)
    sent, draw = gradients(model, x, y), torch.Generator().manual_seed(0)
    noised = DEFENCES["noised"].apply(sent, draw)
    change = torch.cat([(a - b).flatten() for a, b in zip(noised, sent, strict=True)])
    assert float(change.std()) == pytest.approx(0.01 * float(size(sent)), rel=0.05)
    assert {float(v) for one in DEFENCES["signed"].apply(sent, draw) for v in one.unique()} <= {-1.0, 0.0, 1.0}


def test_total_variation_is_the_mean_over_neighbours() -> None:
    x = torch.tensor([[[[0.0, 1.0], [0.5, 0.5]]]])
    assert float(total_variation(x)) == pytest.approx((0.5 + 0.5) / 2 + (1.0 + 0.0) / 2)
    assert float(total_variation(torch.rand(3, 5))) == 0


def test_it_leaves_the_model_and_the_random_state_alone_and_repeats_itself() -> None:
    model, (x, y) = small().train(), smooth_rows(1)
    update = gradients(model, x, y)
    before, state = copy.deepcopy(model.state_dict()), torch.random.get_rng_state()
    first, second = (quick(model, update, steps=5) for _ in range(2))
    assert torch.equal(first.x, second.x)
    assert torch.equal(state, torch.random.get_rng_state())
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
    assert model.training


@pytest.mark.parametrize(
    ("first", "times", "knobs", "says"),
    [
        (1, 1.0, {}, "a gradient for each of the model's 6 parameters"),
        (0, 0.0, {}, "it tells nothing"),
        (0, float("nan"), {}, "it tells nothing"),
        (0, 1.0, {"steps": 0}, "steps, restarts and rate above 0"),
        (0, 1.0, {"batch": 0}, "a batch of one row or more"),
    ],
)
def test_what_cannot_be_is_said(first: int, times: float, knobs: dict[str, int], says: str) -> None:
    model, (x, y) = small(), smooth_rows(1)
    update: Gradients = tuple(one * times for one in gradients(model, x, y)[first:])
    with pytest.raises(ValueError, match=says):
        quick(model, update, **knobs)  # pyright: ignore
