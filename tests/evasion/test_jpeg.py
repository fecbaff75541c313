import io

import numpy as np
import pytest
import torch
from torch import nn

from buckler.evasion.jpeg import jpeg
from buckler.evasion.pgd import pgd
from buckler.kinds import Adaptive
from buckler.nets import LinearModel, SmallCNN
from buckler.threat import Ball


def pictures(rows, channels, height, width, seed=0):
    """Waves of a few lengths with an edge and some noise, so that blocks hold low and high frequencies."""
    rng = np.random.default_rng(seed)
    down, across = np.meshgrid(np.arange(height), np.arange(width), indexing="ij")
    pace, shift = rng.uniform(0.05, 0.7, (2, rows, channels, 1, 1)), rng.uniform(0, 6, (rows, channels, 1, 1))
    waves = 0.5 + 0.4 * np.sin(pace[0] * down + pace[1] * across + shift) + 0.2 * (across > width // 2)
    return torch.from_numpy(waves + 0.03 * rng.normal(size=waves.shape)).clamp(0, 1).float()


def through_pillow(x, quality, subsample):
    image = pytest.importorskip("PIL.Image")
    out = []
    for row in (x * 255).round().byte().permute(0, 2, 3, 1).numpy():
        buffer = io.BytesIO()
        image.fromarray(row[:, :, 0] if row.shape[2] == 1 else row).save(
            buffer, "JPEG", quality=quality, subsampling=2 if subsample else 0
        )
        out.append(np.array(image.open(buffer), dtype=np.float32).reshape(row.shape) / 255)
    return torch.from_numpy(np.stack(out)).permute(0, 3, 1, 2)


@pytest.mark.parametrize("quality", [10, 50, 75, 95])
@pytest.mark.parametrize(("channels", "subsample"), [(1, False), (3, False), (3, True)])
@pytest.mark.parametrize(("height", "width"), [(32, 32), (28, 28), (19, 30)])
def test_it_agrees_with_pillow(quality, channels, subsample, height, width):
    x = pictures(4, channels, height, width)
    expected = through_pillow(x, quality, subsample)
    difference = 255 * (jpeg(nn.Identity(), quality=quality, subsample=subsample)(x) - expected).abs()
    lost = 255 * (x - expected).abs().mean()
    assert difference.mean() < min(1.0, 0.3 * lost)
    assert (difference > 8).float().mean() < 0.05


def test_flat_pictures_come_back_as_they_were():
    levels = torch.tensor([0, 1, 77, 128, 254, 255]).view(-1, 1, 1, 1) / 255
    assert torch.allclose(jpeg(nn.Identity(), quality=100)(levels.expand(-1, 1, 9, 9)), levels, atol=1e-6)
    grey = jpeg(nn.Identity(), quality=100)(levels.expand(-1, 3, 9, 9))
    assert torch.allclose(grey, levels, atol=1e-6)


def test_lower_quality_loses_more():
    x = pictures(4, 3, 32, 32)
    lost = [(jpeg(nn.Identity(), quality=quality)(x) - x).pow(2).mean() for quality in (5, 25, 50, 75, 95)]
    assert lost == sorted(lost, reverse=True)


@pytest.mark.parametrize("channels", [1, 3])
def test_the_surrogate_answers_alike_and_lets_the_gradient_through(channels):
    torch.manual_seed(0)
    model = SmallCNN(channels=channels, width=4)
    guarded = jpeg(model, quality=40)
    assert isinstance(guarded, Adaptive)
    x = pictures(3, channels, 8, 8).requires_grad_()
    hard, soft = guarded(x), guarded.surrogate()(x)
    assert torch.equal(hard, soft)
    assert not torch.allclose(hard, model(x))
    assert torch.autograd.grad(hard.sum(), x)[0].abs().max() == 0
    assert torch.autograd.grad(soft.sum(), x)[0].abs().max() > 0


def test_the_surrogate_of_a_grey_picture_has_the_gradient_of_the_model():
    torch.manual_seed(0)
    model = LinearModel(torch.randn(3, 110), torch.zeros(3))
    x = pictures(2, 1, 11, 10).requires_grad_()
    (grad,) = torch.autograd.grad(jpeg(model, quality=10).surrogate()(x)[:, 1].sum(), x)
    assert torch.allclose(grad.flatten(1), model.weight[1].expand(2, 110), atol=1e-4)


def test_an_adaptive_attack_gets_through_where_a_naive_one_sees_no_gradient():
    torch.manual_seed(0)
    model = LinearModel(torch.randn(2, 64), torch.zeros(2))
    guarded = jpeg(model, quality=75)
    x = 0.3 + 0.4 * torch.rand(20, 1, 8, 8)
    y = guarded(x).argmax(1)
    ball = Ball("linf", 0.2)
    adaptive = pgd(guarded.surrogate(), x, y, ball=ball, steps=20)
    assert (guarded(adaptive).argmax(1) != y).float().mean() > 0.8
    naive = pgd(guarded, x, y, ball=ball, steps=20)
    assert (guarded(naive).argmax(1) != y).float().mean() < 0.4


def test_it_holds_the_model_itself():
    model = SmallCNN(width=4).eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    guarded = jpeg(model)
    assert set(guarded.state_dict()) == {f"model.{name}" for name in before}
    assert not guarded.training
    guarded(torch.rand(2, 1, 8, 8))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_rows_do_not_touch_each_other():
    x = pictures(5, 3, 20, 20)
    guarded = jpeg(nn.Identity())
    assert torch.allclose(guarded(x)[2:3], guarded(x[2:3]), atol=1e-6)


def test_bad_input_gets_one_sentence():
    with pytest.raises(ValueError, match="quality from 1 to 100"):
        jpeg(nn.Identity(), quality=0)
    with pytest.raises(ValueError, match="expected images"):
        jpeg(nn.Identity())(torch.rand(2, 4, 8, 8))
