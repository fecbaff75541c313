from __future__ import annotations

from typing import Any

import pytest
import torch
from stolen_worlds import agreement, net, quick, rows, victim
from torch import Tensor

from buckler.target import Oracle
from buckler.theft._thief import spread
from buckler.theft.active_thief import _chosen, active_thief
from buckler.train import started

STRATEGIES = ["uncertainty", "k-center", "dfal", "dfal+k-center"]


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_it_spends_all_it_may_and_asks_nothing_twice(strategy: Any) -> None:
    seen: list[Tensor] = []

    def answer(x: Tensor) -> Tensor:
        seen.append(x.clone())
        return victim()(x).softmax(1).detach()

    made = quick(active_thief)(Oracle(answer, "scores", 60), rows(150), net=net, strategy=strategy, rounds=4)
    asked = torch.cat(seen)
    assert len(asked) == len(asked.unique(dim=0)) == 60
    assert [len(part) for part in seen] == [6, 13, 14, 13, 14]
    assert agreement(made, victim()) > 0.8
    whole = Oracle(victim(), "scores")
    active_thief(whole, rows(30), net=net, strategy=strategy, rounds=2, epochs=2)
    assert whole.asked == 30


@pytest.mark.parametrize("strategy", ["uncertainty", "dfal"])
def test_it_asks_where_the_copy_is_unsure(strategy: Any) -> None:
    copy, pool = victim(), rows(200)
    chosen = _chosen(strategy, copy, pool, pool[:5], 20, 60)
    y = copy(pool).argmax(1)
    near = copy.distances(pool, y, "l2")
    if strategy == "dfal":
        assert set(chosen.tolist()) == set(near.topk(20, largest=False).indices.tolist())
    assert float(near[chosen].mean()) < 0.5 * float(near.mean())


def test_k_center_covers_what_the_copy_answers() -> None:
    copy, pool = victim(), rows(200)
    answers = copy(pool).softmax(1).detach()
    chosen = _chosen("k-center", copy, pool, pool[:5], 20, 60)

    def radius(rows_: Tensor) -> float:
        centers = torch.cat([answers[:5], answers[rows_]])
        return float(torch.cdist(answers, centers).amin(1).max())

    draw = torch.Generator().manual_seed(0)
    assert radius(chosen) < min(radius(torch.randperm(200, generator=draw)[:20]) for _ in range(20))


def test_the_farthest_row_is_next() -> None:
    points, near = rows(30), rows(3, 2)
    chosen, held = spread(points, 10, near).tolist(), near
    for one in chosen:
        far = torch.stack([(held - point).norm(dim=1).min() for point in points])
        assert one == int(far.argmax())
        held = torch.cat([held, points[one : one + 1]])
    assert sorted(spread(points, 99, near).tolist()) == list(range(30))
    assert int(spread(points, 1, points[:0])) == 0


def test_a_budget_behind_the_oracle_that_is_too_little_leaves_the_network_as_it_begins() -> None:
    oracle = Oracle(victim(), "scores", budget=3)
    made = active_thief(oracle.narrowed("scores", 100), rows(100), net=net, epochs=1)
    torch.testing.assert_close(made.state_dict(), started(net, 0).state_dict())
    assert oracle.asked == 0


def test_no_round_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 1 round"):
        active_thief(Oracle(victim(), "scores"), rows(30), net=net, rounds=0)
