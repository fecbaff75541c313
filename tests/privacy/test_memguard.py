"""MemGuard: the classifier that it was computed against is unsure afterwards, and the label is what it was."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from membership_worlds import by_heart, noise
from torch import Tensor, nn
from torch.nn import functional as F

from buckler import stats
from buckler.privacy.label_only import label_only
from buckler.privacy.loss_threshold import loss_threshold
from buckler.privacy.memguard import HALVINGS, MemGuarded, memguard
from buckler.target import Oracle

MEMBERS, OTHERS, PUBLIC = noise(300), noise(300, seed=4), noise(300, seed=3)
guard = partial(memguard, members=MEMBERS, public=PUBLIC)


@pytest.fixture(scope="module")
def model() -> nn.Module:
    return by_heart(MEMBERS)


@pytest.fixture(scope="module")
def guarded(model: nn.Module) -> MemGuarded:
    made = guard(model)
    assert isinstance(made, MemGuarded)
    return made


def area(inside: Tensor, outside: Tensor) -> float:
    return float(stats.placements(inside, outside).mean())


def test_members_stand_out_to_the_classifier_before_and_not_after(model: nn.Module, guarded: MemGuarded) -> None:
    def judged(answering: nn.Module) -> list[Tensor]:
        return [guarded.judge(answering(x).softmax(1)) for x in (MEMBERS[0], OTHERS[0])]

    with torch.no_grad():
        before, after = judged(model), judged(guarded)
    assert area(*before) > 0.7
    assert 0.4 < area(*after) < 0.6
    assert float(torch.cat(after).abs().mean()) < 0.01 * float(torch.cat(before).abs().mean())


def test_labels_tell_what_they_told_to_the_last_bit(model: nn.Module, guarded: MemGuarded) -> None:
    x, y = torch.cat([MEMBERS[0], OTHERS[0]]), torch.cat([MEMBERS[1], OTHERS[1]])
    plain, through = (label_only(Oracle(one, "labels"), x, y, queries=10) for one in (model, guarded))
    assert torch.equal(plain, through)
    assert area(plain[:300], plain[300:]) > 0.7


def test_the_loss_still_tells_by_the_label(guarded: MemGuarded) -> None:
    """What the classifier cannot see, who knows the labels can: the answer is right for members."""
    scores = [loss_threshold(Oracle(guarded, "scores"), *rows) for rows in (MEMBERS, OTHERS)]
    assert area(*scores) > 0.7


@pytest.mark.parametrize("distortion", [0.02, 0.1, 0.2])
def test_the_expected_distortion_is_limited(model: nn.Module, distortion: float) -> None:
    made = guard(model, distortion=distortion, epochs=20)
    x = torch.cat([MEMBERS[0], OTHERS[0]])
    with torch.no_grad():
        moved = (made(x).softmax(1) - model(x).softmax(1)).abs().sum(1)
    assert 0.5 * distortion < float(moved.mean()) < distortion + 3 * float(moved.std()) / len(x) ** 0.5


def test_no_distortion_is_no_guard(model: nn.Module) -> None:
    assert torch.equal(guard(model, distortion=0.0, epochs=1)(OTHERS[0]), model(OTHERS[0]))


def test_the_noise_is_that_of_a_naive_walk(model: nn.Module, guarded: MemGuarded) -> None:
    """The paper's loop for one row, with autograd and no batch, and the place where the sign changes by bisection."""
    z = model(OTHERS[0][:12]).detach()
    found = guarded._unsure(z)
    for row, noise_found in zip(z, found, strict=True):
        label, before, e = int(row.argmax()), row.softmax(0), torch.zeros(4)
        side = float(guarded.judge(before[None]))

        def log_odds(shift: Tensor, row: Tensor = row) -> Tensor:
            return guarded.judge((row + shift).softmax(0)[None])[0]

        for _ in range(guarded.steps):
            if int((row + e).argmax()) == label and float(log_odds(e)) * side <= 0:
                break
            e.requires_grad_()
            others = torch.cat([(row + e)[:label], (row + e)[label + 1 :]])
            moved = ((row + e).softmax(0) - before).abs().sum()
            loss = log_odds(e).abs() + 10 * F.relu(others.max() - (row + e)[label]) + 0.1 * moved
            (slope,) = torch.autograd.grad(loss, e)
            e = (e - 0.1 * slope / slope.norm()).detach()
        low, high = 0.0, 1.0
        for _ in range(HALVINGS):
            middle = (low + high) / 2
            low, high = (middle, high) if float(log_odds(middle * e)) * side > 0 else (low, middle)
        torch.testing.assert_close(noise_found, (low + high) / 2 * e, atol=1e-3, rtol=1e-2)


@pytest.mark.parametrize("wrong", [{"distortion": -0.1}, {"distortion": 2.1}, {"steps": 0}, {"size": 0.0}])
def test_what_cannot_be_is_refused(model: nn.Module, wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="expected distortion in"):
        guard(model, **wrong)  # pyright: ignore
    with pytest.raises(ValueError, match="got none on a side"):
        memguard(model, members=MEMBERS, public=noise(0))
