"""SISA: what is left is what training without the rows gives, weight for weight; and only what forgets is believed."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from membership_worlds import bright, net, noise, normed, subject, untaught
from torch import Tensor, nn

from buckler.data import Rows
from buckler.findings import Severity, rules
from buckler.kinds import Forgotten
from buckler.privacy._parts import parted
from buckler.privacy._unlearning import EXACT, GONE
from buckler.privacy.evaluate import evaluate
from buckler.privacy.judge import judge
from buckler.privacy.sisa import _Committee, sisa
from buckler.subject import Subject
from buckler.train import fit, started
from buckler.trial import Trial, load, save

NONE = torch.zeros(0, dtype=torch.long)
COMMAND = "buckler run {method} --demo digits --seed 0"


def same(a: nn.Module, b: nn.Module) -> bool:
    left, right = a.state_dict(), b.state_dict()
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


@pytest.mark.parametrize("make", [net, normed])
@pytest.mark.parametrize("forget", [[3], [0, 7, 8, 20, 41, 59]])
def test_after_is_training_without_the_rows_weight_for_weight(make: Callable[[], nn.Module], forget: list[int]) -> None:
    x, y = noise(60)
    knobs = {"net": make, "shards": 3, "slices": 2, "epochs": 3, "batch": 8, "seed": 5}
    made = sisa((x, y), torch.tensor(forget), **knobs)  # pyright: ignore
    left = torch.ones(60, dtype=torch.bool)
    left[forget] = False
    anew = sisa((x[left], y[left]), NONE, **knobs)  # pyright: ignore
    assert same(made.after, anew.before)
    assert same(made.before, sisa((x, y), NONE, **knobs).after)  # pyright: ignore
    assert not same(made.before, made.after)


def test_the_committee_is_that_of_a_naive_loop() -> None:
    x, y = noise(40)
    made = sisa((x, y), NONE, net=net, shards=2, slices=2, epochs=3, batch=8, seed=1)
    parts, said = parted(x, 4, 1), list[Tensor]()
    for shard in range(2):
        model = started(net, 2 + shard)
        for rows in (parts[2 * shard], torch.cat(parts[2 * shard : 2 * shard + 2])):
            fit(model, (x[rows], y[rows]), epochs=2, batch=8, seed=1)
        with torch.no_grad():
            said.append(model(x).softmax(1))
    with torch.no_grad():
        assert torch.allclose(made.before(x).exp(), (said[0] + said[1]) / 2, atol=1e-6)


def test_what_is_done_again_is_the_member_from_the_slice_of_the_row() -> None:
    x, y = noise(80)
    parts = parted(x, 6, 0)
    sizes = [len(part) for part in parts]
    total = sum((3 - i % 3) * size for i, size in enumerate(sizes)) - 1
    made = sisa((x, y), parts[5][:1], net=net, shards=2, slices=3, epochs=1)
    assert made.redone == pytest.approx((sum(sizes[3:]) - 1) / total)
    before, after = made.before.members, made.after.members  # pyright: ignore
    assert same(before[0], after[0])  # pyright: ignore
    assert not same(before[1], after[1])  # pyright: ignore
    assert sisa((x, y), NONE, net=net, epochs=1).redone == 0
    assert sisa((x, y), torch.cat([part[:1] for part in parts]), net=net, shards=2, slices=3, epochs=1).redone == 1


def test_it_leaves_the_rows_and_the_random_state_alone_and_learns() -> None:
    x, y = bright(200)
    state, rows = torch.random.get_rng_state(), ((x * 255).to(torch.uint8), y.clone())
    kept = rows[0].clone()
    made = sisa(rows, torch.arange(10), net=net, epochs=20, batch=16)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert torch.equal(rows[0], kept)
    assert not made.after.training
    copy.deepcopy(made.after)
    with torch.no_grad():
        assert float((made.after(x).argmax(1) == y).float().mean()) > 0.8
        assert torch.allclose(made.after(x).exp().sum(1), torch.ones(200), atol=1e-5)


@pytest.mark.parametrize("knobs", [{"shards": 0}, {"slices": 0}])
def test_no_parts_and_no_such_rows_are_refused(knobs: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="expected at least one shard and one slice"):
        sisa(noise(20), NONE, net=net, **knobs)
    for row in (-1, 20):
        with pytest.raises(ValueError, match="expected numbers of rows between 0 and 19"):
            sisa(noise(20), torch.tensor([row]), net=net)
    for forget in (torch.arange(20) > 17, torch.tensor([1.0])):
        with pytest.raises(ValueError, match="expected whole numbers of rows to forget"):
            sisa(noise(20), forget, net=net)


# ------------------------------------------------------------------------------------------------ the evaluation


def learnt(data: Rows) -> nn.Module:
    return fit(started(net, 0), data, epochs=40, batch=32, rate=0.01, decay=0.0, optimizer="adam")


def exactly(data: Rows, forget: Tensor, *, net: Callable[[], nn.Module]) -> Forgotten:
    """Learns by heart, and anew without the rows."""
    left = torch.ones(len(data[1]), dtype=torch.bool)
    left[forget] = False
    return Forgotten(learnt(data), learnt((data[0][left], data[1][left])), 1.0)


def not_at_all(data: Rows, forget: Tensor, *, net: Callable[[], nn.Module]) -> Forgotten:
    """Says that it forgot."""
    model = learnt(data)
    return Forgotten(model, copy.deepcopy(model), 0.0)


def nothing(data: Rows, forget: Tensor, *, net: Callable[[], nn.Module]) -> Forgotten:
    return Forgotten(untaught(data), untaught(data), 0.0)


def given(rows: int = 400) -> Subject:
    return subject(untaught, rows, net=net)


def checked(trial: Trial, name: str) -> bool:
    (check,) = [check for check in trial.checks if check.name == name]
    return check.passed


def test_what_forgets_is_told_from_what_only_says_so() -> None:
    good, bad = evaluate(exactly, given()), evaluate(not_at_all, given(), models=4)
    for trial in (good, bad):
        assert trial.status == "ok"
        assert trial.estimates["before_auc"].low > 0.6
    assert good.estimates["auc"].high < bad.estimates["auc"].low
    assert checked(good, GONE)
    assert checked(good, EXACT)
    assert good.estimates["change_auc"].low > 0.6
    assert not checked(bad, GONE)
    assert not checked(bad, EXACT)
    (finding,) = judge([good, bad], {}, rules(), COMMAND).findings
    assert (finding.id, finding.severity) == ("privacy/unlearning", Severity.high)
    assert judge([good], {}, rules(), COMMAND).findings[0].severity is Severity.info


def test_where_nothing_shows_nothing_is_credited() -> None:
    trial = evaluate(nothing, given(240))
    assert trial.status == "inconclusive"
    assert "nothing is known of how they are forgotten" in trial.reason
    assert judge([trial], {}, rules(), COMMAND).not_measured[0].why == trial.reason


def test_a_trial_of_sisa_is_exact_and_recomputed(tmp_path: Path) -> None:
    trial = evaluate(sisa, given(240))
    assert checked(trial, EXACT)
    assert trial.params["redone"] == 1
    save(trial, tmp_path / "trial")
    assert load(tmp_path / "trial").estimates.keys() == trial.estimates.keys()


@pytest.mark.parametrize("lost", ["train", "net"])
def test_what_a_subject_lacks_is_said(lost: str) -> None:
    trial = evaluate(sisa, replace(given(), **{lost: None}))  # pyright: ignore
    assert trial.status == "skipped"
    assert f"`{lost}`" in trial.reason
    with pytest.raises(ValueError, match="expected 160 training rows or more"):
        evaluate(sisa, given(100))


def test_a_committee_of_one_is_the_one() -> None:
    model, x = started(net, 0), noise(5)[0]
    with torch.no_grad():
        assert torch.allclose(_Committee([model])(x), model(x).log_softmax(1))
