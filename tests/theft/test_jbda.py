import copy

import pytest
import torch
from torch import Tensor, nn

from buckler.nets import LinearModel
from buckler.target import Oracle
from buckler.theft.jbda import jbda


@pytest.fixture(scope="module")
def victim() -> LinearModel:
    weight = torch.randn(3, 6, generator=torch.Generator().manual_seed(0))
    return LinearModel(weight, -weight.sum(1) / 2)


def _rows(many: int, seed: int) -> Tensor:
    return torch.rand(many, 6, generator=torch.Generator().manual_seed(seed))


def _net() -> nn.Module:
    return nn.Linear(6, 3)


def test_agrees_with_the_victim_better_than_the_pool_alone_allows():
    """Over three victims; on a linear one steps along the oracle's own label lead away from the boundary."""
    test = _rows(2000, 9)
    gained: list[float] = []
    for seed in range(3):
        weight = torch.randn(3, 6, generator=torch.Generator().manual_seed(seed))
        victim = LinearModel(weight, -weight.sum(1) / 2)
        agreement: list[float] = []
        for rounds in (1, 5):
            oracle = Oracle(victim, "labels")
            made = jbda(oracle, _rows(20, 1), net=_net, towards="random", rounds=rounds)
            agreement.append(float((made(test).argmax(1) == oracle.labels(test)).float().mean()))
        gained.append(agreement[1] - agreement[0])
        assert agreement[1] > 0.8
    assert sum(gained) / 3 > 0.07


def test_the_set_doubles_and_then_grows_by_what_is_kept(victim: LinearModel):
    for rounds, expected in ((1, 20), (2, 40), (3, 80), (4, 160), (5, 190), (6, 220)):
        oracle = Oracle(victim, "labels")
        jbda(oracle, _rows(20, 1), net=_net, rounds=rounds, full=3, keep=30, epochs=1)
        assert oracle.asked == expected


@pytest.mark.parametrize("budget", [0, 7, 20, 55])
def test_stops_at_the_budget_and_returns_a_model(victim: LinearModel, budget: int):
    oracle = Oracle(victim, "labels", budget=budget)
    made = jbda(oracle, _rows(20, 1), net=_net, rounds=6, epochs=1)
    assert oracle.asked == budget
    assert made(_rows(4, 2)).shape == (4, 3)
    assert not made.training


def test_new_points_are_one_step_along_the_sign_of_the_jacobian(victim: LinearModel):
    """A substitute that starts as the victim and learns nothing between rounds has a Jacobian that is known."""
    seen: list[Tensor] = []

    def answer(x: Tensor) -> Tensor:
        seen.append(x.clone())
        return victim(x)

    oracle = Oracle(answer, "labels")
    pool = _rows(20, 1)
    jbda(oracle, pool, net=lambda: copy.deepcopy(victim), rounds=3, step=0.1, turn=1, epochs=0)
    signed = 0.1
    held = pool
    for asked in seen[1:]:
        expected: list[Tensor] = []
        for row in held:
            point = row[None].clone().requires_grad_()
            out = victim(point)
            (grad,) = torch.autograd.grad(out.softmax(1)[0, int(out.argmax())], point)
            expected.append((row + signed * grad[0].sign()).clamp(0, 1))
        torch.testing.assert_close(asked, torch.stack(expected))
        held, signed = torch.cat([held, asked]), -signed


def test_a_random_step_leads_to_another_label_than_the_oracle_s():
    """Of a substitute that knows the victim: a step up another label's probability raises it."""
    weight = torch.tensor([[8.0, 0.0, 0.0], [0.0, 8.0, 0.0], [0.0, 0.0, 8.0]])
    victim = LinearModel(weight, torch.zeros(3))
    seen: list[Tensor] = []

    def answer(x: Tensor) -> Tensor:
        seen.append(x.clone())
        return victim(x)

    pool = torch.eye(3).repeat(20, 1) * 0.5 + 0.2 + 0.1 * _rows(60, 1)[:, :3]
    jbda(
        Oracle(answer, "labels"),
        pool,
        net=lambda: copy.deepcopy(victim),
        towards="random",
        rounds=2,
        epochs=0,
        step=0.1,
    )
    own = victim(pool).argmax(1)
    rise = victim(seen[1]).softmax(1) - victim(pool).softmax(1)
    assert bool((rise.gather(1, own[:, None]) < 0).all())
    towards = rise.argmax(1)
    assert len({(int(a), int(b)) for a, b in zip(own, towards, strict=True)}) == 6  # every other label is drawn


def test_starts_from_as_much_of_the_pool_as_is_asked(victim: LinearModel):
    oracle = Oracle(victim, "labels")
    jbda(oracle, _rows(20, 1), net=_net, rounds=2, start=7, epochs=1)
    assert oracle.asked == 14


def test_the_seed_decides_and_the_global_state_stays(victim: LinearModel):
    before = torch.random.get_rng_state()
    copies = [
        jbda(Oracle(victim, "labels"), _rows(20, 1), net=_net, rounds=5, keep=10, epochs=2, seed=seed)
        for seed in (0, 0, 1)
    ]
    assert torch.equal(torch.random.get_rng_state(), before)
    weights = [made.state_dict()["weight"] for made in copies]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_refuses_an_empty_pool(victim: LinearModel):
    with pytest.raises(ValueError, match="at least one row"):
        jbda(Oracle(victim, "labels"), _rows(0, 1), net=_net)
