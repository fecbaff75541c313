from __future__ import annotations

import torch
from stolen_worlds import CLASSES, SIDES, agreement, net, quick, rows, victim
from torch import Tensor
from torch.nn import functional as F

from buckler.target import Oracle
from buckler.theft.knockoff import _reward, knockoff
from buckler.train import fit, started

THIEF = quick(knockoff)


def watched(model: torch.nn.Module, budget: int | None = None) -> tuple[Oracle, list[Tensor]]:
    seen: list[Tensor] = []

    def answer(x: Tensor) -> Tensor:
        seen.append(x.clone())
        return model(x).softmax(1).detach()

    return Oracle(answer, "scores", budget), seen


def test_random_is_training_on_answers_to_rows_each_asked_about_once() -> None:
    pool = rows(80)
    oracle, seen = watched(victim(), 50)
    made = knockoff(oracle, pool, net=net, epochs=5)
    asked = torch.cat(seen)
    assert len(asked) == len(asked.unique(dim=0)) == 50
    assert bool((asked[:, None] == pool[None]).all(2).any(1).all())
    naive = fit(started(net, 0), (asked, victim()(asked).softmax(1).detach()), epochs=5, batch=32, rate=0.1, seed=0)
    torch.testing.assert_close(made.state_dict(), naive.state_dict())


def test_scores_teach_more_than_labels() -> None:
    soft = victim(steep=2.0)
    gained = [
        agreement(THIEF(Oracle(soft, "scores", 15), rows(200, seed), net=net, seed=seed), soft)
        - agreement(THIEF(Oracle(soft, "labels", 15), rows(200, seed), net=net, seed=seed), soft)
        for seed in range(4)
    ]
    assert sum(gained) / 4 > 0.05


def test_an_adaptive_thief_asks_more_where_answers_reward_it() -> None:
    """Half of the pool is in a corner where the victim hesitates between all classes, always alike."""
    model = victim(steep=6.0)
    useful = rows(300)
    useless = torch.full((300, SIDES), 0.5) + 0.01 * (rows(300, 3) - 0.5)
    assert float(model(useless).detach().softmax(1).amax(1).mean()) < 0.5
    oracle, seen = watched(model, 200)
    made = THIEF(oracle, torch.cat([useless, useful]), net=net, strategy="adaptive", arms=12)
    asked = torch.cat(seen)
    assert len(asked) == len(asked.unique(dim=0)) == 200
    far = float(((asked - 0.5).abs().amax(1) > 0.02).float().mean())
    assert far > 0.65  # by chance a half
    assert agreement(made, model) > 0.85


def test_the_bandit_does_not_divide_by_no_variance_nor_take_the_log_of_nothing() -> None:
    sure = F.one_hot(torch.zeros(8, dtype=torch.long), CLASSES).float()
    none = sure.roll(1, 1)
    for answers, copied in ((sure, sure), (sure, none), (sure / 2 + none / 2, none)):
        reward = _reward(answers, answers, copied)
        assert reward.isfinite().all()
        assert bool(((reward >= 0) & (reward <= 1)).all())
    constant = Oracle(lambda x: torch.tensor([1.0, 0.0, 0.0]).expand(len(x), 3), "scores", 60)
    made = knockoff(constant, rows(80), net=net, strategy="adaptive", epochs=20)
    assert made(rows(5)).isfinite().all()


def test_a_reward_is_for_sure_new_and_unknown_answers() -> None:
    unsure, known = torch.tensor([[0.4, 0.3, 0.3]]), torch.tensor([[0.9, 0.05, 0.05]])
    new, before = torch.tensor([[0.05, 0.9, 0.05]]), torch.tensor([[0.9, 0.05, 0.05]] * 4)
    copied = torch.tensor([[0.9, 0.05, 0.05]] * 3)
    low, middle, high = _reward(torch.cat([unsure, known, new]), before, copied).tolist()
    assert high > middle
    assert high > low
    assert high > 0.99
