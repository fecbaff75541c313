"""PATE: the noise is what the accountant asks for, a row reaches one teacher, and the student sees noisy votes."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import pytest
import torch
from membership_worlds import bright, net, noise, subject, untaught
from torch import Tensor, nn

from buckler.accountant import spent
from buckler.data import Rows
from buckler.findings import rules
from buckler.kinds import Protected
from buckler.privacy import pate as module
from buckler.privacy._parts import parted
from buckler.privacy.audit_epsilon import audit_epsilon
from buckler.privacy.evaluate import evaluate
from buckler.privacy.judge import judge
from buckler.privacy.pate import _noise, pate


def renyi(sigma: float, queries: int, delta: float) -> float:
    """The paper's own bound: q answers of GNMax cost q/sigma^2 times the order, and are converted at the best order."""
    order = 1 + math.sqrt(math.log(1 / delta) * sigma**2 / queries)
    return queries * order / sigma**2 + math.log(1 / delta) / (order - 1)


@pytest.mark.parametrize(("epsilon", "delta", "queries"), [(8.0, 1e-3, 100), (1.0, 1e-5, 20), (0.1, 1e-6, 1)])
def test_the_noise_keeps_the_promise_and_no_more(epsilon: float, delta: float, queries: int) -> None:
    sigma = _noise(epsilon, delta, queries)
    grid = 1e-3 * min(1.0, epsilon)
    assert spent(sigma / math.sqrt(2), 1.0, queries, delta, grid) == pytest.approx(epsilon, rel=0.01)
    assert epsilon < renyi(sigma, queries, delta) < 1.6 * epsilon


def test_more_answers_and_a_smaller_epsilon_cost_more_noise() -> None:
    assert _noise(8.0, 1e-5, 400) == pytest.approx(2 * _noise(8.0, 1e-5, 100))
    assert _noise(1.0, 1e-5, 100) > 4 * _noise(8.0, 1e-5, 100)
    assert _noise(1e-4, 1e-9, 1) > 1e3
    assert _noise(500.0, 1e-9, 1) < 0.1


def test_one_row_more_changes_one_part_wherever_it_stands() -> None:
    x, extra = noise(60)[0], noise(1, seed=9)[0]
    before = [x[rows] for rows in parted(x, 7, 3)]
    assert sorted(len(part) for part in before)[-1] < 25
    assert sum(map(len, before)) == 60
    for place in (0, 30, 60):
        more = torch.cat([x[:place], extra, x[place:]])
        after = [more[rows] for rows in parted(more, 7, 3)]
        changed = [i for i, (a, b) in enumerate(zip(before, after, strict=True)) if a.shape != b.shape]
        assert len(changed) == 1
        assert all(torch.equal(before[i], after[i]) for i in range(7) if i not in changed)
    assert any(len(a) != len(b) for a, b in zip(parted(x, 7, 3), parted(x, 7, 4), strict=True))


class Sees:
    """In place of the loop: keeps what each model is taught, and teaches it nothing."""

    def __init__(self) -> None:
        self.taught = list[tuple[Tensor, Tensor]]()

    def __call__(self, model: nn.Module, rows: tuple[Tensor, Tensor], **_: object) -> nn.Module:
        self.taught.append(rows)
        return model


def lesson(
    monkeypatch: pytest.MonkeyPatch, data: tuple[Tensor, Tensor], **knobs: object
) -> list[tuple[Tensor, Tensor]]:
    sees = Sees()
    monkeypatch.setattr(module, "fit", sees)
    pate(data, net=net, public=noise(30, seed=1), **knobs)  # pyright: ignore
    return sees.taught


def test_no_teacher_shares_a_row_and_the_student_sees_only_public_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    data, public = noise(80), noise(30, seed=1)[0]
    *taught, student = lesson(monkeypatch, data, teachers=5, queries=12)
    assert len(taught) == 5
    rows = torch.cat([x for x, _ in taught])
    assert torch.equal(rows.flatten(1).sum(1).sort().values, data[0].flatten(1).sum(1).sort().values)
    assert torch.equal(student[0], public[:12])


def test_teachers_without_two_rows_have_no_vote_and_there_are_no_more_than_rows_for_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert len(lesson(monkeypatch, noise(80), teachers=500)) == 8 + 1
    same = noise(1)[0].expand(40, -1, -1, -1), noise(40)[1]
    assert len(lesson(monkeypatch, same, teachers=4)) == 1 + 1


def test_labels_are_those_of_most_teachers_but_for_the_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    data, knobs = noise(80), {"teachers": 7, "queries": 30, "seed": 2}
    sure = lesson(monkeypatch, data, epsilon=1e7, **knobs)[-1]
    voters = [module.started(net, 2 * 9 + teacher).eval() for teacher in range(7)]
    with torch.no_grad():
        said = torch.stack([voter(sure[0]).argmax(1) for voter in voters], 1)
    most = [{int(c) for c in range(4) if (row == c).sum() == row.bincount().max()} for row in said]
    assert all(int(label) in best for label, best in zip(sure[1], most, strict=True))
    hidden = lesson(monkeypatch, data, epsilon=1e-3, **knobs)[-1]
    assert 0 < sum(int(label) in best for label, best in zip(hidden[1], most, strict=True)) < 24


def test_the_student_learns_what_the_teachers_know() -> None:
    public, (x, y) = bright(100, seed=1), bright(200, seed=2)
    made = pate(bright(200), net=net, public=public, teachers=10, epsilon=100.0, delta=1e-5)
    assert (made.epsilon, made.delta) == (100.0, 1e-5)
    blind = pate(bright(200), net=net, public=public, teachers=10, epsilon=0.01, delta=1e-5, epochs=5)
    with torch.no_grad():
        assert float((made.model(x).argmax(1) == y).float().mean()) > 0.8
        assert float((blind.model(x).argmax(1) == y).float().mean()) < 0.6


def test_the_labels_of_public_rows_are_not_looked_at() -> None:
    (x, y), knobs = noise(20, seed=1), {"net": net, "teachers": 3, "epochs": 2}
    models = [pate(noise(40), public=(x, labels), **knobs).model for labels in (y, 3 - y)]  # pyright: ignore
    assert all(torch.equal(a, b) for a, b in zip(*(m.parameters() for m in models), strict=True))


@pytest.mark.parametrize(
    ("knobs", "says"),
    [
        ({"epsilon": 0.0}, "expected epsilon above 0"),
        ({"delta": 1.0}, "delta between 0 and 1"),
        ({"teachers": 0}, "expected at least one teacher"),
        ({"queries": 0}, "expected at least one teacher, query and public row"),
        ({"public": (torch.zeros(0, 1, 6, 6), torch.zeros(0))}, "got 50, 100 and 0"),
    ],
)
def test_bad_input_is_one_sentence(knobs: dict[str, object], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        pate(noise(20), **{"net": net, "public": noise(5), **knobs})  # pyright: ignore


def test_an_evaluation_and_an_audit_give_it_public_rows() -> None:
    world = subject(untaught, 80, net=net)
    method = partial(pate, teachers=2, epochs=1, queries=10)
    trial = evaluate(method, world, models=4, rows=80)
    assert (trial.estimates["accuracy"].n, trial.params["promised_epsilon"]) == (40, 8.0)
    audit = evaluate(partial(audit_epsilon, canaries=20), world, defence=method)
    assert audit.params["promised_epsilon"] == 8.0
    assert audit.status == "inconclusive"  # 20 canaries cannot show an epsilon of 8 at all
    assert not audit.checks[0].passed
    assert "so few canaries cannot refute this promise" in audit.reason
    assert judge([audit], {}, rules(), "").not_measured[0].why == audit.reason


def test_public_rows_are_no_training_rows() -> None:
    """Of 50 in the second half of the test rows 20 are, then 40."""
    seen = list[Rows]()

    def watched(data: Rows, *, net: Callable[[], nn.Module], public: Rows, seed: int = 0) -> Protected:
        seen.append(public)
        return Protected(untaught((data[0] + seed % 97, data[1])), 0.1, 1e-5)

    train, test = noise(100), noise(100, seed=1)
    shared = torch.cat([test[0][:60], train[0][:20], test[0][80:]]), test[1]
    world = subject(untaught, 100, net=net, test=shared)
    trials = [evaluate(watched, world, models=4), evaluate(partial(audit_epsilon, canaries=40), world, defence=watched)]
    assert all(torch.equal(public[0], torch.cat([test[0][50:60], test[0][80:]])) for public in seen)
    assert all("20 of 50 public rows are training rows as well" in trial.checks[-1].says for trial in trials)
    few = replace(world, test=(torch.cat([test[0][:60], train[0][:40]]), test[1]))
    for method, defence in ((watched, None), (partial(audit_epsilon, canaries=40), watched)):
        with pytest.raises(ValueError, match="expected 20 public rows or more, which nobody learnt from, got 10"):
            evaluate(method, few, models=4, defence=defence)
