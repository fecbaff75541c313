import pytest
import torch
from norm_problems import Counting, digits, linear
from torch.nn import functional as F

from buckler.dice import Dice
from buckler.evasion.mi_fgsm import _diverse, _smooth, mi_fgsm
from buckler.threat import Ball


def naive(model, x, y, radius, steps, *, scales=1, nesterov=False):
    """One row at a time, as in the papers."""
    out = []
    for row, label in zip(x, y, strict=True):
        moved, momentum = row.clone(), torch.zeros_like(row)
        for _ in range(steps):
            at = moved + radius / steps * momentum if nesterov else moved
            grad = torch.zeros_like(row)
            for scale in range(scales):
                point = at.clone().requires_grad_()
                loss = F.cross_entropy(model((point / 2**scale)[None]), label[None])
                grad += torch.autograd.grad(loss, point)[0] / scales
            momentum = momentum + grad / grad.abs().mean()
            moved = moved + radius / steps * momentum.sign()
            moved = torch.clamp(torch.clamp(moved, row - radius, row + radius), 0, 1)
        out.append(moved)
    return torch.stack(out)


@pytest.mark.parametrize("options", [{}, {"scales": 3}, {"nesterov": True}, {"scales": 2, "nesterov": True}])
def test_equals_the_naive_loop(options):
    model, x, y = digits()
    double, x, y = type(model)(width=8).double(), x[:8].double(), y[:8]
    double.load_state_dict(model.state_dict())
    moved = mi_fgsm(double.eval(), x, y, ball=Ball("linf", 0.1), steps=6, stop=False, **options)
    assert torch.allclose(moved, naive(double, x, y, 0.1, 6, **options), atol=1e-9)


def test_without_stop_the_last_iterate_with_stop_the_first_success():
    model, x, y = digits()
    ball = Ball("linf", 0.2)
    counting = Counting(model)
    whole = mi_fgsm(counting, x, y, ball=ball, stop=False)
    assert counting.rows == [60] * 10
    counting.rows.clear()
    short = mi_fgsm(counting, x, y, ball=ball)
    assert counting.rows == sorted(counting.rows, reverse=True)
    assert sum(counting.rows) < 500
    fooled = model(short).argmax(1) != y
    assert bool(fooled[model(whole).argmax(1) != y].all())
    assert (short - x).flatten(1).norm(dim=1).mean() < (whole - x).flatten(1).norm(dim=1).mean()
    right = model(x).argmax(1) == y
    assert torch.equal(short[~right], x[~right])


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("options", [{}, {"diversity": 1.0, "translation": 1, "nesterov": True, "scales": 2}])
def test_rows_do_not_depend_on_their_batch_and_stay_legal(norm, options):
    model, x, y = digits()
    x, y = x[:12], y[:12]
    ball = Ball(norm, torch.linspace(0.02, 0.3, 12))
    for stop in (True, False):
        moved = mi_fgsm(model, x, y, ball=ball, stop=stop, **options)
        assert ball.contains(x, moved).all()
        alone = mi_fgsm(model, x[5:6], y[5:6], ball=ball.rows(torch.tensor([5])), stop=stop, **options)
        assert torch.allclose(alone, moved[5:6], atol=1e-4)


def test_seeds_matter_only_where_there_are_draws():
    model, x, y = digits()
    ball = Ball("linf", 0.1)
    runs = [mi_fgsm(model, x, y, ball=ball, diversity=d, stop=False, seed=s) for d in (0.0, 1.0) for s in (0, 1)]
    assert torch.equal(runs[0], runs[1])
    assert not torch.equal(runs[2], runs[3])
    assert not torch.equal(runs[0], runs[2])


def test_a_diverse_input_is_the_same_picture_somewhere_and_surrounded_by_zeros():
    x = torch.ones(64, 2, 20, 20)
    x += torch.rand(64, 1, 1, 1)
    same = _diverse(x, 0.0, Dice(x))
    assert torch.allclose(same, x, atol=1e-4)
    moved = _diverse(x, 1.0, Dice(x))
    area = (moved > 0.5 * x).float().mean((1, 2, 3))
    assert area.min() >= 0.80
    assert area.max() <= 1.0001
    assert len(area.round(decimals=2).unique()) == 3  # 18, 19 or 20 pixels wide
    inner = moved[:, :, 3:17, 3:17]
    assert torch.allclose(inner, x[:, :, 3:17, 3:17], atol=1e-3)
    assert len({tuple((row[0, 10] > 0.5).int().tolist()) for row in moved}) > 3
    some = _diverse(x, 0.5, Dice(x))
    assert 0.2 < (some.flatten(1) - x.flatten(1)).abs().amax(1).lt(1e-4).float().mean() < 0.9


def test_translation_is_a_normalised_gaussian_per_channel():
    point = torch.zeros(1, 2, 15, 15)
    point[0, 1, 7, 7] = 1
    spread = _smooth(point, 3)
    assert torch.allclose(spread[0, 1].sum(), torch.tensor(1.0))
    assert not spread[0, 0].any()
    assert torch.allclose(spread[0, 1, 7, 8] / spread[0, 1, 7, 7], torch.tensor(-0.5).exp())
    assert torch.allclose(spread[0, 1, 9, 8] / spread[0, 1, 7, 7], torch.tensor(-2.5).exp())
    assert not spread[0, 1, :4].any()


def test_reaches_the_boundary_of_a_linear_model_and_the_target():
    model, x, y = linear(classes=2)
    for norm in ("linf", "l2"):
        for share, falls in ((1.02, True), (0.98, False)):
            ball = Ball(norm, share * model.distances(x, y, norm))
            assert bool(((model(mi_fgsm(model, x, y, ball=ball)).argmax(1) != y) == falls).all())
    model, x, y = digits()
    moved = mi_fgsm(model, x, y, ball=Ball("linf", 0.5), goal=3, steps=20)
    assert (model(moved).argmax(1) == 3).float().mean() > 0.8


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"ball": Ball("l1", 1)}, "l1"),
        ({"ball": Ball("l2", float("inf"))}, "finite"),
        ({"steps": 0}, "steps"),
        ({"diversity": 1.5}, "diversity"),
    ],
)
def test_refuses(options, match):
    model, x, y = linear()
    with pytest.raises(ValueError, match=match):
        mi_fgsm(model, x, y, **{"ball": Ball("linf", 0.1), **options})


def test_images_are_needed_for_some_options():
    model, x, y = linear()
    flat = x.flatten(1)
    assert mi_fgsm(model, flat, y, ball=Ball("linf", 0.1), nesterov=True, scales=2).shape == flat.shape
    for options in ({"diversity": 0.5}, {"translation": 2}):
        with pytest.raises(ValueError, match="images"):
            mi_fgsm(model, flat, y, ball=Ball("linf", 0.1), **options)
