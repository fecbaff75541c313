"""What every defence by training promises, over whatever the file tree holds."""

from __future__ import annotations

import copy
from functools import partial

import pytest
import torch
from membership_worlds import net, noise, normed
from torch import nn

from buckler.catalog import cards, find
from buckler.kinds import Protected
from buckler.method import Method, left_open

METHODS = [card.path for card in cards("privacy") if card.kind == "protect"]


def small(path: str) -> Method:
    method = partial(find(path), epochs=2, batch=16)
    return partial(method, public=noise(20, seed=3)) if left_open(method, "public") else method


def made(path: str, seed: int = 0) -> Protected:
    return small(path)(noise(48), net=net, seed=seed)


def test_they_are_here() -> None:
    assert {f"privacy/{name}" for name in ("dp_sgd", "label_smoothing", "pate", "relax_loss")} <= set(METHODS)


@pytest.mark.parametrize("path", METHODS)
def test_it_returns_a_plain_network_of_the_same_kind(path: str) -> None:
    model, fresh = made(path).model, net()
    assert type(model) is type(fresh)
    assert list(model.state_dict()) == list(fresh.state_dict())
    assert not model.training
    assert all(p.requires_grad for p in model.parameters())
    for part, other in zip(model.modules(), fresh.modules(), strict=True):
        assert set(vars(part)) == set(vars(other))
        assert not part._forward_hooks
        assert not part._backward_hooks
    assert all(not vars(p) for p in model.parameters())
    copy.deepcopy(model)


@pytest.mark.parametrize("path", METHODS)
def test_the_seed_alone_decides(path: str) -> None:
    state = torch.random.get_rng_state()
    weights = [torch.cat([p.flatten() for p in made(path, seed).model.parameters()]) for seed in (1, 1, 2)]
    assert torch.equal(state, torch.random.get_rng_state())
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


@pytest.mark.parametrize("path", METHODS)
def test_it_leaves_the_rows_alone_and_takes_bytes_and_batch_norm(path: str) -> None:
    x, y = noise(48)
    rows = (x * 255).to(torch.uint8), y
    kept = rows[0].clone(), y.clone()
    model = small(path)(rows, net=normed).model
    assert isinstance(model, nn.Module)
    assert bool(model(x).isfinite().all())
    assert torch.equal(rows[0], kept[0])
    assert torch.equal(rows[1], kept[1])
