"""Attention distillation against closed forms, plain training, and what its weights are for."""

from functools import partial

import pytest
import torch
from repair_problems import Flat, check_a_copy_is_repaired, same, state, trained, untrained
from torch import nn

from buckler.nets import ResNet, SmallCNN
from buckler.poisoning.nad import _attention, _outputs, _stages, nad
from buckler.train import fit, started

WAYS = {"teacher": 1, "epochs": 2, "rate": 0.02}


def test_attention_is_where_activations_are() -> None:
    maps = torch.zeros(1, 3, 2, 2)
    maps[0, 0, 0, 1], maps[0, 1, 0, 1], maps[0, 2, 1, 0] = 1.0, -2.0, 12**0.5
    expected = torch.tensor([[0.0, 5.0, 12.0, 0.0]]) / 13  # sums of squares 5 and 12, and their length
    assert torch.allclose(_attention(maps, 2.0), expected)
    assert torch.allclose(_attention(7 * maps, 2.0), expected, atol=1e-6), "how strongly does not matter"
    assert torch.allclose(_attention(maps, 1.0), torch.tensor([[0.0, 3.0, 12**0.5, 0.0]]) / 21**0.5)
    assert _attention(torch.zeros(2, 3, 2, 2), 2.0).isfinite().all()


def test_stages_are_the_last_modules_of_each_resolution() -> None:
    x = torch.rand(2, 1, 8, 8)
    assert _stages(SmallCNN(width=2), x) == ["first", "second"]
    assert _stages(ResNet(width=4, blocks=(2, 1, 1)), x) == ["stages.1", "stages.2", "stages"]
    pooled = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2, 10))
    assert _stages(pooled, (255 * x).to(torch.uint8)) == ["1"], "one position has no attention"


def test_without_weight_it_is_fine_tuning() -> None:
    model, clean = untrained(8)
    got = nad(model, clean, betas=(0.0,), **WAYS)
    plain = fit(untrained(8)[0], clean, epochs=2, batch=64, rate=0.02, decay=1e-4, seed=1)
    assert same(got, state(plain))


def test_weight_draws_attention_to_the_teachers() -> None:
    model, clean = trained()
    guide = fit(trained()[0], clean, epochs=1, batch=64, rate=0.02, decay=1e-4, seed=0)
    apart = []
    for betas in ((0.0,), (50.0,)):
        student = nad(model, clean, betas=betas, **WAYS)
        stages = _stages(model, clean[0][:2])
        with torch.no_grad(), _outputs(student, stages) as mine, _outputs(guide, stages) as theirs:
            student(clean[0])
            guide(clean[0])
        apart.append(sum(float((_attention(mine[s], 2) - _attention(theirs[s], 2)).square().mean()) for s in stages))
    assert apart[1] < 0.8 * apart[0]


def test_every_resolution_has_its_weight() -> None:
    _, (x, y) = untrained()
    model, few = started(lambda: SmallCNN(width=8), 0), (x[:64], y[:64])
    spelled = nad(model, few, betas=(500.0, 1000.0), **WAYS)
    assert same(nad(model, few, betas=(500.0, 1000.0, 7.0), **WAYS), state(spelled)), "what is over is left out"
    assert not same(nad(model, few, betas=(1000.0, 500.0), **WAYS), state(spelled))
    repeated = nad(model, few, betas=(800.0,), **WAYS)
    assert same(nad(model, few, betas=(800.0, 800.0), **WAYS), state(repeated)), "the last is repeated"


def test_it_repairs_a_copy() -> None:
    check_a_copy_is_repaired(partial(nad, **WAYS), *untrained(8))


def test_what_cannot_work_is_refused() -> None:
    with pytest.raises(ValueError, match="feature maps"):
        nad(Flat(), untrained()[1])
    with pytest.raises(ValueError, match="at least one weight"):
        nad(SmallCNN(width=2), untrained()[1], betas=())
