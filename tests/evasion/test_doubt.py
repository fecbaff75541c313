from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial

import defects
import pytest
import torch
from defects import Broken, held_out, sound
from torch import Tensor, nn

from buckler.contract import told
from buckler.dice import Dice
from buckler.evasion import _indicators
from buckler.evasion._binarization import binarization
from buckler.evasion._doubt import GATES, cross_check, examine, gates, labels, noise, random_noise, unbounded
from buckler.evasion._indicators import indicators
from buckler.evasion.pgd import pgd
from buckler.kinds import Perturbed
from buckler.nets import LinearModel
from buckler.target import Oracle
from buckler.threat import Ball
from buckler.trial import Check

BALL = Ball("linf", 0.1)
Attack = Callable[..., Tensor]


def named(checks: tuple[Check, ...]) -> dict[str, Check]:
    assert len({check.name for check in checks}) == len(checks), "two checks of one name"
    return {check.name: check for check in checks}


def failed(checks: tuple[Check, ...]) -> set[str]:
    return {check.name for check in checks if not check.passed}


def watch(method: Attack, model: nn.Module, ball: Ball = BALL, rows: int = 24, **more: nn.Module) -> dict[str, Check]:
    x, y = held_out(rows)
    found = method(model, x.clone(), y, ball=ball)
    target = more.get("target", model)
    return named(indicators(method, model, target, x, y, ball=ball, found=found))


def everything(method: Attack, model: nn.Module, ball: Ball) -> tuple[Check, ...]:
    x, y = held_out(24)
    found = method(model, x, y, ball=ball)
    standing = labels(model, found) == y
    return (
        *examine(model, x, y, ball=ball),
        *indicators(method, model, model, x, y, ball=ball, found=found),
        binarization(method, model, x, y, ball=ball),
        random_noise(model, x, y, ball=ball, held=standing),
        unbounded(method, model, x, y, ball=ball),
    )


# --- the control: nothing is held against a sound attack on a sound model


@pytest.mark.parametrize("ball", [BALL, Ball("linf", 0.04), Ball("l2", 0.5)], ids=str)
def test_sound_model_and_attack_raise_no_doubt(ball: Ball) -> None:
    checks = everything(partial(pgd, steps=20), sound(), ball)
    assert failed(checks) == set()
    assert all(told(check) for check in checks), [check.name for check in checks if not told(check)]
    assert not any(gates(check) for check in checks)


def test_sound_control_leaves_rows_standing_so_that_the_indicators_had_something_to_judge() -> None:
    x, y = held_out(24)
    standing = labels(sound(), pgd(sound(), x, y, ball=BALL)) == y
    assert 4 <= int(standing.sum()) < 24


def test_per_row_radii_raise_no_doubt() -> None:
    x, _ = held_out(24)
    ball = Ball("linf", torch.linspace(0.05, 0.15, len(x)))
    assert failed(everything(partial(pgd, steps=20), sound(), ball)) == set()


def test_a_linear_model_raises_no_doubt() -> None:
    torch.manual_seed(0)
    model = LinearModel(torch.randn(5, 64), torch.zeros(5))
    x, _ = held_out(24)
    y = labels(model, x)
    found = pgd(model, x, y, ball=Ball("linf", 0.01))
    checks = (
        *examine(model, x, y, ball=BALL),
        *indicators(pgd, model, model, x, y, ball=Ball("linf", 0.01), found=found),
        binarization(pgd, model, x, y, ball=BALL),
    )
    assert failed(checks) == set()


# --- planted in the model


@pytest.mark.parametrize(
    ("how", "name"),
    [
        (defects.stochastic, "random"),
        (defects.dropout_left_on, "random"),
        (defects.softmax, "logits"),
        (defects.signed, "gradients"),
        (defects.rounded, "gradients"),
        (defects.detached, "gradients"),
        (defects.signed, "quantised"),
        (defects.rounded, "quantised"),
        (defects.rounded_straight_through, "quantised"),
        (defects.optimises, "static"),
        (defects.saturated, "saturated"),
    ],
)
def test_defect_is_caught_by_its_check(how: Callable[[nn.Module, Tensor], Tensor], name: str) -> None:
    x, y = held_out()
    checks = named(examine(Broken(sound(), how), x, y, ball=BALL))
    assert not checks[name].passed
    assert told(checks[name])


@pytest.mark.parametrize("how", [defects.signed, defects.rounded, defects.detached])
def test_gradient_killer_fails_the_indicators_and_the_binarization_test(
    how: Callable[[nn.Module, Tensor], Tensor],
) -> None:
    model = Broken(sound(), how)
    checks = watch(pgd, model)
    assert not checks["unavailable_gradients"].passed
    x, y = held_out(16)
    check = binarization(pgd, model, x, y, ball=BALL)
    assert not check.passed
    assert gates(check)


def test_straight_through_rounding_is_attacked_soundly() -> None:
    checks = everything(partial(pgd, steps=20), Broken(sound(), defects.rounded_straight_through), BALL)
    assert not [check for check in checks if gates(check)]
    assert failed(checks) == {"quantised"}


def test_saturated_cross_entropy_is_told_apart_from_masked_gradients() -> None:
    model = Broken(sound(), defects.saturated)
    x, y = held_out()
    assert named(examine(model, x, y, ball=BALL))["gradients"].passed
    assert not watch(pgd, model)["unavailable_gradients"].passed
    assert watch(partial(pgd, objective="margin"), model)["unavailable_gradients"].passed


def test_a_model_that_remembers_is_not_static() -> None:
    x, y = held_out()
    assert failed(examine(defects.Remembers(sound()), x, y, ball=BALL)) == {"static"}


def test_gradients_taken_inside_the_forward_pass_are_noticed_without_patching_anything() -> None:
    x, y = held_out(8)
    before = torch.autograd.grad, torch.autograd.backward, sys.getprofile()
    assert "static" in failed(examine(Broken(sound(), defects.optimises), x, y, ball=BALL))
    assert (torch.autograd.grad, torch.autograd.backward, sys.getprofile()) == before


def test_beside_a_profiler_inner_optimisation_is_unknown_and_the_profiler_stays() -> None:
    x, y = held_out(8)

    def profiler(*_: object) -> None:
        return None

    sys.setprofile(profiler)
    try:
        check = named(examine(sound(), x, y, ball=BALL))["static"]
        assert sys.getprofile() is profiler
    finally:
        sys.setprofile(None)
    assert not told(check)


def test_a_constant_model_has_no_gradient_and_no_verdict() -> None:
    model = Broken(sound(), lambda inner, x: inner(x) * 0 + torch.arange(10.0))
    x, _ = held_out()
    y = torch.full((len(x),), 9)
    assert "gradients" in failed(examine(model, x, y, ball=BALL))
    assert not unbounded(pgd, model, x, y, ball=BALL).passed


def test_two_classes_are_too_few_for_dlr() -> None:
    model = LinearModel(torch.randn(2, 64), torch.zeros(2))
    x, y = held_out(8)
    checks = named(examine(model, x, y % 2, ball=BALL))
    assert not checks["classes"].passed
    assert not gates(checks["classes"])


def test_training_mode_is_left_as_it_was_and_does_not_matter() -> None:
    model = nn.Sequential(
        nn.Flatten(), nn.Linear(64, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Dropout(0.5), nn.Linear(32, 10)
    )
    defects.trained(model).train()
    before = [tensor.clone() for tensor in model.state_dict().values()]
    x, y = held_out(16)
    checks = examine(model, x, y, ball=BALL)
    binarization(partial(pgd, steps=3), model, x, y, ball=BALL)
    assert named(checks)["random"].passed
    assert all(module.training for module in model.modules())
    assert len(before) == len(model.state_dict())
    assert all(a.equal(b) for a, b in zip(before, model.state_dict().values(), strict=True))


# --- planted in the attack


@pytest.mark.parametrize(
    ("method", "name"),
    [
        (defects.ends_before_it_starts, "incomplete_optimisation"),
        (defects.too_few_steps, "incomplete_optimisation"),
        (defects.forgets_success, "silent_success"),
        (defects.returns_input, "incomplete_optimisation"),
        (defects.returns_input, "unconstrained_failure"),
        (defects.out_of_range, "legal"),
        (defects.too_far, "legal"),
        (defects.not_finite, "legal"),
        (defects.not_finite, "unconstrained_failure"),
    ],
)
def test_failure_of_the_attack_is_told_by_its_indicator(method: Attack, name: str) -> None:
    check = watch(method, sound())[name]
    assert not check.passed
    assert gates(check)


@pytest.mark.parametrize(
    "method",
    [
        defects.ends_before_it_starts,
        defects.too_few_steps,
        defects.returns_input,
        defects.out_of_range,
        defects.not_finite,
    ],
)
def test_planted_examples_are_missed_by_a_bad_attack(method: Attack) -> None:
    x, y = held_out(16)
    check = binarization(method, sound(), x, y, ball=BALL)
    assert not check.passed
    assert check.value is not None
    assert check.value < 0.9


def test_success_that_was_kept_is_not_silent_though_it_lies_outside_the_limit() -> None:
    """A minimum-norm attack may only know adversarial examples that are too far away: that is no silent success."""

    def finds_far(model: nn.Module, x: Tensor, y: Tensor, *, ball: Ball) -> Perturbed:
        return pgd(model, x, y, ball=Ball("linf", 0.4))

    check = watch(finds_far, sound(), Ball("linf", 0.02))["silent_success"]
    assert check.passed
    assert told(check)


def test_transfer_failure() -> None:
    torch.manual_seed(1)
    other = defects.trained(defects.SmallCNN(width=4), epochs=1)
    x, y = held_out(24)
    ball = Ball("linf", 0.06)
    found = pgd(other, x, y, ball=ball, stop=False, steps=10)
    check = named(indicators(partial(pgd, steps=10), other, sound(), x, y, ball=ball, found=found))["transfer_failure"]
    claimed, hit = labels(other, found) != y, labels(sound(), found) != y
    assert check.value == pytest.approx(float((claimed & ~hit).sum()) / float(claimed.sum()))
    assert not check.passed
    assert gates(check)
    assert not gates(check, transferred=True)


def test_attack_that_raises_is_unknown_not_passed() -> None:
    def raises(model: nn.Module, x: Tensor, y: Tensor, *, ball: Ball) -> Perturbed:
        raise RuntimeError("no")

    x, y = held_out(16)
    checks = named(indicators(raises, sound(), sound(), x, y, ball=BALL, found=x))
    assert not told(checks["silent_success"])
    assert not told(checks["unconstrained_failure"])
    assert not told(binarization(raises, sound(), x, y, ball=BALL))
    assert "no" in checks["silent_success"].says


def test_watching_leaves_no_hook_and_asks_at_most_what_it_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_indicators, "CALLS", 30)
    x, y = held_out(12)
    calls: list[int] = []

    def endless(model: nn.Module, x: Tensor, y: Tensor, *, ball: Ball) -> Perturbed:
        for _ in range(100_000):
            calls.append(1)
            model(x)
            if ball.radius == 1.0:
                break
        return x

    indicators(endless, sound(), sound(), x, y, ball=BALL, found=x)
    assert len(calls) <= 8 * 30 + 1
    assert not sound()._forward_hooks
    assert not any(module._forward_pre_hooks for module in sound().modules())


# --- the checks between attacks


def test_black_box_that_beats_white_box() -> None:
    white, black = torch.zeros(500, dtype=torch.bool), torch.zeros(500, dtype=torch.bool)
    white[:100] = True
    black[:101] = True
    assert cross_check(white, black).passed, "one row in 500 is within 0.2 %"
    black[:102] = True
    check = cross_check(white, black)
    assert not check.passed
    assert check.value == pytest.approx(0.004)
    assert gates(check)
    assert cross_check(black, white).passed
    assert not told(cross_check(white[:0], black[:0]))


def test_random_noise_beats_an_attack_without_gradients() -> None:
    x, y = held_out()
    model = Broken(sound(), defects.signed)
    found = pgd(model, x, y, ball=BALL)
    check = random_noise(model, x, y, ball=BALL, held=labels(model, found) == y)
    assert not check.passed
    assert random_noise(model, x, y, ball=BALL, held=torch.zeros(len(x), dtype=torch.bool)).passed


def test_unbounded_attack_that_fails() -> None:
    x, y = held_out(16)
    assert not unbounded(defects.returns_input, sound(), x, y, ball=BALL).passed
    assert unbounded(pgd, sound(), x, y, ball=BALL).value == 0


@pytest.mark.parametrize("norm", ["linf", "l2", "l1", "l0"])
@pytest.mark.parametrize("edge", [True, False])
def test_noise_stays_in_the_ball_and_reaches_its_surface(norm: str, edge: bool) -> None:
    x = torch.full((6, 3, 5, 5), 0.5)
    ball = Ball(norm, torch.tensor([0.3, 0.4, 0.2, 0.3, 0.4, 0.2]) * (20 if norm == "l0" else 1))  # pyright: ignore
    moved = noise(x, ball, Dice(x, 0), edge=edge)
    assert ball.contains(x, moved).all()
    size = ball.size(moved - x)
    if edge and norm != "l0":
        torch.testing.assert_close(size, ball.radii(x).flatten())
    if norm == "l0":
        assert (size == ball.radii(x).flatten().floor()).all()
    assert not moved.equal(x)


def test_indicators_of_black_boxes() -> None:
    x, y = held_out(16)
    oracle = Oracle(sound(), "labels")
    checks = named(indicators(defects.gives_up, oracle, oracle, x, y, ball=BALL, found=x))
    assert not told(checks["unavailable_gradients"])
    assert not checks["unconstrained_failure"].passed
    outside = Oracle(lambda x: sound()(x).argmax(1), "labels")
    checks = named(indicators(defects.gives_up, outside, outside, x, y, ball=BALL, found=x))
    assert not any(told(check) for name, check in checks.items() if name not in ("legal", "transfer_failure"))


@pytest.mark.parametrize("rows", [0, 2])
def test_too_few_rows_decide_nothing(rows: int) -> None:
    x, y = held_out(rows)
    assert not told(binarization(pgd, sound(), x, y, ball=BALL))
    if rows == 0:
        assert not any(told(check) for check in examine(sound(), x, y, ball=BALL))
        assert not any(told(check) for check in indicators(pgd, sound(), sound(), x, y, ball=BALL, found=x))


def test_an_unlimited_ball_has_no_surface() -> None:
    x, y = held_out(8)
    assert not told(binarization(pgd, sound(), x, y, ball=Ball("l2", float("inf"))))


# --- what gates


def test_gates() -> None:
    assert all(gates(Check(name, False, "", 1.0)) for name in GATES)
    assert not gates(Check("gradients", True, "", 0.0))
    assert not gates(Check("saturated", False, "", 1.0))
    assert not gates(Check("random", False, "", 1.0), adaptive=True)
    assert gates(Check("gradients", False, "", 1.0), adaptive=True)


def test_nothing_is_left_behind() -> None:
    x, y = held_out(16)
    model, state = sound(), torch.get_rng_state()
    weights = [tensor.clone() for tensor in model.state_dict().values()]
    x0 = x.clone()
    everything(partial(pgd, steps=3), model, BALL)
    assert state.equal(torch.get_rng_state())
    assert x.equal(x0)
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())
    assert all(a.equal(b) for a, b in zip(weights, model.state_dict().values(), strict=True))
    first, again = (everything(partial(pgd, steps=3), model, BALL) for _ in range(2))
    assert first == again
