from __future__ import annotations

import copy
import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from buckler.contract import FATAL, check_contract, fatal, told
from buckler.target import Oracle
from buckler.trial import Check

sys.path.insert(0, str(Path(__file__).parent / "evasion"))

import defects
from defects import Broken, held_out, sound


def failed(checks: tuple[Check, ...]) -> set[str]:
    assert len({check.name for check in checks}) == len(checks), "two checks of one name"
    return {check.name for check in checks if not check.passed}


def only(checks: tuple[Check, ...], name: str) -> Check:
    (check,) = [check for check in checks if check.name == name]
    return check


def sentence(check: Check) -> bool:
    return (
        check.says[0] == check.says[0].upper()
        and check.says.endswith(".")
        and "\n" not in check.says
        and len(check.says) < 320
    )


def test_a_sound_model_fails_nothing_and_every_check_is_told() -> None:
    x, y = held_out(200)
    checks = check_contract(sound(), x, y, classes=10)
    assert failed(checks) == set()
    assert all(told(check) and sentence(check) for check in checks)
    assert {check.name for check in checks} >= FATAL - {"collapsed"} | {
        "training",
        "random",
        "batch",
        "chance",
        "logits",
    }


@pytest.mark.parametrize(
    ("how", "names"),
    [
        (defects.stochastic, {"random"}),
        (defects.dropout_left_on, {"random"}),
        (defects.softmax, {"logits"}),
        (defects.by_batch, {"batch"}),
        (lambda model, x: model(x)[:, :3], {"shape"}),
        (lambda model, x: model(x).argmax(1), {"shape"}),
        (lambda model, x: model(x)[:, :, None], {"shape"}),
        (lambda model, x: model(x)[:1], {"shape"}),
        (lambda model, x: model(x) / (model(x).argmax(1, keepdim=True) != 3), {"finite"}),
        (lambda model, x: model(x) + torch.nan, {"finite"}),
        (lambda model, x: model(x[:, :, :5]), {"answers"}),
        (lambda model, x: -model(x), {"chance"}),
        (lambda model, x: model(x * 0), {"chance"}),
    ],
)
def test_defect_of_the_model(how: Callable[[nn.Module, Tensor], Tensor], names: set[str]) -> None:
    x, y = held_out(200)
    checks = check_contract(Broken(sound(), how), x, y, classes=10)
    assert failed(checks) == names
    assert all(sentence(check) for check in checks)
    assert any(map(fatal, checks)) == bool(names & FATAL)


@pytest.mark.parametrize(
    ("how", "range_"),
    [(defects.wants_bytes, "[0, 255]"), (defects.wants_signed_units, "[-1, 1]")],
)
def test_a_model_made_for_another_range(how: Callable[[nn.Module, Tensor], Tensor], range_: str) -> None:
    images, labels = defects.digits()
    model = Broken(sound(), how)
    checks = check_contract(model, images[1400:], labels[1400:])
    assert "scale" in failed(checks)
    assert range_ in only(checks, "scale").says
    assert any(map(fatal, checks))


def test_a_model_made_for_standardised_inputs() -> None:
    images, labels = defects.digits()
    x, y = images[1400:].expand(-1, 3, -1, -1) * torch.tensor([1.0, 0.1, 0.5]).view(1, 3, 1, 1), labels[1400:]
    mean, spread = x.mean((0, 2, 3), keepdim=True), x.std((0, 2, 3), keepdim=True)
    model = Broken(sound(), lambda inner, x: inner((x * spread + mean)[:, 1:2] * 10))
    check = only(check_contract(model, x, y), "scale")
    assert not check.passed
    assert "standardised" in check.says


def test_weak_but_honest_models_are_not_accused_of_wanting_another_range() -> None:
    images, labels = defects.digits()
    for seed in range(3):
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
        defects.trained(model, epochs=1, rate=1e-3)
        checks = check_contract(model, images[1400:], labels[1400:])
        assert only(checks, "scale").passed


@pytest.mark.parametrize(
    ("change", "name", "hint"),
    [
        (lambda x: x * 255, "inputs", "divide by 255"),
        (lambda x: x * 2 - 1, "inputs", "first layer of the model"),
        (lambda x: x / 0, "inputs", "NaN"),
        (lambda x: x[:0], "data", "Expected inputs"),
        (lambda x: x[:5], "data", "Expected inputs"),
    ],
)
def test_defect_of_the_inputs(change: Callable[[Tensor], Tensor], name: str, hint: str) -> None:
    x, y = held_out(50)
    checks = check_contract(sound(), change(x), y)
    assert failed(checks) == {name}
    assert hint in only(checks, name).says
    assert any(map(fatal, checks))


@pytest.mark.parametrize(
    ("change", "name"),
    [
        (lambda y: y + 1, "classes"),
        (lambda y: y - 1, "labels"),
        (lambda y: y.float(), "labels"),
        (lambda y: y[:0], "data"),
        (lambda y: torch.nn.functional.one_hot(y), "data"),
    ],
)
def test_defect_of_the_labels(change: Callable[[Tensor], Tensor], name: str) -> None:
    x, y = held_out(200)
    checks = check_contract(sound(), x, change(y))
    assert failed(checks) == {name}
    assert any(map(fatal, checks))


def test_empty_data() -> None:
    x, y = held_out(0)
    checks = check_contract(sound(), x, y)
    assert failed(checks) == {"data"}


def test_one_class_only_leaves_chance_open() -> None:
    images, labels = defects.digits()
    index = (labels == 3).nonzero().squeeze(1)
    checks = check_contract(sound(), images[index], labels[index])
    assert failed(checks) == {"one_class"}
    assert not told(only(checks, "chance"))
    assert not any(map(fatal, checks))


def test_few_rows_leave_chance_open() -> None:
    x, y = held_out(200)
    index = torch.tensor([int((y == 0).nonzero()[0]), int((y == 1).nonzero()[0])])
    checks = check_contract(sound(), x[index], y[index])
    assert not told(only(checks, "chance"))


def test_sorted_data_are_sampled_throughout() -> None:
    images, labels = defects.digits()
    order = labels.argsort(stable=True)
    checks = check_contract(sound(), images[order], labels[order])
    assert failed(checks) == set()


@pytest.mark.parametrize("layer", [nn.Dropout(0.5), nn.BatchNorm1d(10)])
def test_training_mode_is_told_and_left_on(layer: nn.Module) -> None:
    x, y = held_out(200)
    model = nn.Sequential(sound(), layer)
    defects.trained(model, epochs=1)
    assert "training" not in failed(check_contract(model, x, y))
    layer.train()
    check = only(check_contract(model, x, y), "training")
    assert not check.passed
    assert "1 modules (1)" in check.says
    assert layer.training
    assert not sound().training
    assert not fatal(check)


def test_batch_statistics_in_evaluation_mode() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8, track_running_stats=False), nn.Flatten(), nn.Linear(288, 10)
    )
    x, y = held_out(200)
    assert "batch" in failed(check_contract(defects.trained(model, epochs=2), x, y))
    single = nn.Sequential(nn.Flatten(), nn.Linear(64, 10), nn.BatchNorm1d(10, track_running_stats=False))
    check = only(check_contract(defects.trained(single, epochs=2), x, y), "batch")
    assert not check.passed
    assert "single row" in check.says


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_precisions(dtype: torch.dtype) -> None:
    x, y = held_out(200)
    assert failed(check_contract(copy.deepcopy(sound()).to(dtype), x, y)) == set()


def test_oracles_are_checked_as_far_as_they_answer_and_asked_little() -> None:
    x, y = held_out(200)
    for reveals in ("labels", "scores", "logits"):
        oracle = Oracle(sound(), reveals)
        checks = check_contract(oracle, x, y, classes=10)
        assert failed(checks) == set()
        assert oracle.asked <= 300
    assert failed(check_contract(Oracle(lambda x: sound()(x).argmax(1), "labels"), x, y, classes=10)) == set()
    assert failed(check_contract(Oracle(Broken(sound(), defects.softmax), "logits"), x, y)) == {"logits"}


def test_oracle_that_cannot_answer() -> None:
    def down(x: Tensor) -> Tensor:
        raise ConnectionError("connection\nrefused")

    x, y = held_out(50)
    checks = check_contract(Oracle(down, "labels"), x, y)
    assert failed(checks) == {"answers"}
    assert "connection refused" in only(checks, "answers").says
    checks = check_contract(Oracle(sound(), "labels", budget=10), x, y)
    assert failed(checks) == set()
    assert not told(only(checks, "answers"))
    checks = check_contract(Oracle(sound(), "labels", budget=70), x, y)
    assert failed(checks) == set()


def test_nothing_is_changed() -> None:
    x, y = held_out(100)
    x0, state = x.clone(), torch.get_rng_state()
    model = sound()
    check_contract(model, x, y)
    assert x.equal(x0)
    assert state.equal(torch.get_rng_state())
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize(
    ("how", "name", "says"),
    [
        (lambda model, x: model(x.mul_(0.5)), "in_place", "writes into its inputs"),
        (lambda model, x: (model(x), 1), "answers", "got a tuple"),
        (lambda model, x: (100 * model(x)).long(), "shape", r"of torch\.int64"),
    ],
)
def test_what_no_attack_could_use_is_fatal(how: Callable[..., Tensor], name: str, says: str) -> None:
    x, y = held_out(40)
    before = x.clone()
    check = only(check_contract(Broken(sound(), how), x, y), name)
    assert fatal(check)
    assert re.search(says, check.says)
    assert x.equal(before), "the data stay as they are, whatever the model does"
