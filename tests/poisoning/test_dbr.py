"""Sensitivity to transformations, unlearning and relearning, against loops and on digits with a patch."""

from __future__ import annotations

import copy
from functools import partial

import pytest
import torch
from backdoored_problems import accuracy, poison, success
from cultivate_problems import auroc, check_a_cultivator, few, net
from torch import nn

from buckler.data import digits
from buckler.nets import ResNet, SmallCNN
from buckler.poisoning import _look
from buckler.poisoning._look import inputs_of, last_linear
from buckler.poisoning.dbr import _centres_alike, _consistent, _inconsistency, _removed, _stepped, dbr
from buckler.train import fit, started

QUICK = {"epochs": (1, 1, 2, 2), "batch": 32, "rate": 0.02, "unlearn": 0.01, "draws": 2}


def test_features_move_as_far_as_they_do() -> None:
    x, _ = few(6)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 2))  # the features are the pixels
    assert torch.equal(_inconsistency(model, x, lambda x: x, 2, 0), torch.zeros(6))
    got = _inconsistency(model, x, lambda x: x.flip(3), 3, 0)
    for row in range(6):
        expected = sum(
            (float(a) - float(b)) ** 2 for a, b in zip(x[row].flatten(), x[row].flip(2).flatten(), strict=True)
        )
        assert float(got[row]) == pytest.approx(expected / 64, rel=1e-4)


def test_centres_pair_by_pair() -> None:
    x, y = few(30)
    y = torch.where(y > 3, 7, y)
    model = started(net, 0)
    got = _centres_alike(model, x, y)
    with inputs_of(last_linear(model)) as seen:
        model(x)
    centres = [torch.stack([seen[0][row] for row in range(30) if y[row] == label]).mean(0) for label in y.unique()]
    pairs = [(one.detach(), other.detach()) for one in centres for other in centres if one is not other]
    total = sum(float(torch.cosine_similarity(one, other, dim=0)) for one, other in pairs)
    assert float(got.detach()) == pytest.approx(total / len(centres) ** 2, rel=1e-4)
    assert got.requires_grad


def test_the_rate_falls_at_a_half_and_three_quarters() -> None:
    assert [_stepped(epoch / 200) for epoch in (0, 99, 100, 149, 150)] == [1.0, 1.0, 0.1, 0.1, 0.01]


def test_what_is_relearnt_holds_every_label() -> None:
    score = torch.tensor([0.0, 1.0, 2.0, 3.0, 9.0, 8.0])
    y = torch.tensor([0, 0, 0, 0, 1, 1])
    assert _consistent(score, y, 0.5).tolist() == [True, True, False, False, False, True]
    assert _consistent(score, y, 0.01).tolist() == [True, False, False, False, False, True]


def test_unlearning_forgets_the_suspected_rows_only_and_pauses_at_chance() -> None:
    x, y = digits(train=True)
    x, y = x[:500], y[:500].clone()
    y[:40] = (y[:40] + 3) % 10  # learnt by heart
    model = fit(started(partial(SmallCNN, width=16), 0), (x, y), epochs=40, batch=32, rate=0.1)
    suspected, rest = (x[:40], y[:40]), (x[40:], y[40:])
    assert _look.accuracy(model, suspected) > 0.9
    cured = _removed(copy.deepcopy(model), suspected, rest, rest, 15, 64, 1e-2, None, 0)
    assert _look.accuracy(cured, suspected) < 0.2
    assert _look.accuracy(cured, rest) > 0.9
    harmful = _removed(copy.deepcopy(model), rest, suspected, suspected, 2, 64, 1e-6, None, 0)
    assert _look.accuracy(harmful, rest) > 0.9, "nothing is gained, so that the model stays"


def test_what_every_cultivator_keeps_to() -> None:
    done = check_a_cultivator(partial(dbr, **QUICK))
    assert int(done.suspicion.flagged.sum()) == 6
    assert done.suspicion.score[done.suspicion.flagged].min() >= done.suspicion.score[~done.suspicion.flagged].max()
    assert done.dynamics["loss"].shape == (2, 120)


def test_bad_input() -> None:
    for shares in ({"poisoned": 0.0}, {"clean": 0.0}, {"poisoned": 0.5, "clean": 0.6}):
        with pytest.raises(ValueError, match="expected shares to unlearn and relearn"):
            dbr(few(80), net=net, **shares)
    with pytest.raises(ValueError, match="a model with a linear layer"):
        dbr(few(80), net=lambda: nn.Sequential(nn.Conv2d(1, 10, 8), nn.Flatten()))


def test_rows_that_hang_on_a_patch_are_told_and_unlearnt() -> None:
    poisoned = poison()
    done = dbr(
        poisoned.seen, net=partial(ResNet, width=8, blocks=(1, 1)), epochs=(6, 6, 10, 10), batch=64, rate=0.05,
        unlearn=6e-3,
    )  # fmt: skip
    assert auroc(done.suspicion.score, poisoned.rows) > 0.8
    assert success(done.model, poisoned.trigger) < 0.3
    assert accuracy(done.model) > 0.85
