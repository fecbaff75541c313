"""Deconfounding against closed forms, a gradient by hand, and on digits with a patch."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from backdoored_problems import accuracy, poison, success
from cultivate_problems import auroc, check_a_cultivator, few, net, same_weights
from torch import nn

from buckler.nets import ResNet
from buckler.poisoning._dynamics import Watched, plain
from buckler.poisoning._look import inputs_of, last_linear
from buckler.poisoning.cbd import _confounded, _Pair, _reversed_gradient, _stepped, _weighted, cbd
from buckler.train import started

QUICK = {"epochs": (1, 2), "batch": 32, "rate": 0.02}


def test_weights_in_closed_form() -> None:
    got = _confounded(torch.tensor([0.0, 1.0, 3.0, 2.0]), torch.tensor([2.0, 1.0, 1.0, 0.0]))
    assert torch.allclose(got, torch.tensor([0.0, 0.5, 0.75, 1.0]))
    assert _confounded(torch.zeros(1), torch.zeros(1)).isfinite().all()


def test_a_batch_weighs_as_much_as_it_has_rows_and_weights_are_no_path_for_gradients() -> None:
    x, y = few(40)
    first, model = started(net, 0), started(net, 1)
    known = plain(first(x), y).detach()
    loss = _weighted(first, y, Watched(y), known)(model, x, torch.arange(40))
    own = plain(model(x), y)
    weight = _confounded(known, own.detach())
    expected = sum(weight[row] * own[row] for row in range(40)) / weight.sum()
    assert float(loss.mean().detach()) == pytest.approx(float(expected.detach()), rel=1e-4)
    for got, wanted in zip(
        torch.autograd.grad(loss.mean(), list(model.parameters())),
        torch.autograd.grad(expected, list(model.parameters())),
        strict=True,
    ):
        assert torch.allclose(got, wanted, atol=1e-5)


def test_the_rate_falls_where_the_authors_let_it() -> None:
    assert [_stepped(epoch / 100) for epoch in (0, 19, 20, 69, 70, 99)] == [1.0, 1.0, 0.1, 0.1, 0.01, 0.01]


def test_a_gradient_is_reversed() -> None:
    x = torch.tensor([1.0, -2.0], requires_grad=True)
    out = _reversed_gradient(x, 0.3)
    assert torch.allclose(out, x)
    (out**2).sum().backward()
    assert torch.allclose(x.grad, -0.3 * 2 * x)


def test_the_critic_climbs_what_the_network_descends() -> None:
    x, _ = few(16)
    first, model = started(net, 0), started(net, 1)
    pair = _Pair(model, first, 0.5, 0).eval()
    logits, added = pair(x)
    assert torch.allclose(logits, model(x))
    ours = [model.first.weight, pair.critic[2].bias, pair.critic[0].parametrizations.weight.original]
    got = torch.autograd.grad(added, ours, allow_unused=True)
    with inputs_of(last_linear(first)) as seen:
        first(x)
    with inputs_of(last_linear(model)) as own:
        model(x)
    joint = pair.critic(torch.cat([seen[0].detach(), own[0]], 1)).mean()
    apart = pair.critic(torch.cat([seen[0].detach(), own[0][torch.arange(16) - 1]], 1)).mean()
    wanted = torch.autograd.grad(joint - apart, ours, allow_unused=True)
    assert float(added.detach()) == pytest.approx(float((apart - joint).detach()), abs=1e-6)
    assert torch.allclose(got[0], 0.5 * wanted[0], atol=1e-7)
    assert wanted[0].abs().max() > 0
    assert torch.allclose(got[2], -wanted[2], atol=1e-7)
    assert all(parameter.grad is None for parameter in first.parameters())
    assert {name.split(".")[0] for name, _ in pair.named_parameters()} == {"model", "critic"}


def test_losses_looked_up_are_losses_computed() -> None:
    ways = {**QUICK, "net": net, "seed": 3}
    looked = cbd(few(80), **ways)
    computed = cbd(few(80), augment=lambda x: x, **ways)
    assert torch.allclose(looked.suspicion.score, computed.suspicion.score, atol=1e-4)
    assert looked.dynamics["loss"].shape == (2, 80)


def test_independence_changes_what_is_learnt() -> None:
    ways = {**QUICK, "net": net}
    apart = cbd(few(80), independence=0.5, **ways).model
    assert not same_weights(cbd(few(80), **ways).model, apart)
    assert type(apart) is type(net()), "the critic does not stay"
    with pytest.raises(ValueError, match="a model with a linear layer"):
        cbd(few(80), independence=0.5, **{**ways, "net": lambda: nn.Sequential(nn.Conv2d(1, 10, 8), nn.Flatten())})


def test_what_every_cultivator_keeps_to() -> None:
    done = check_a_cultivator(partial(cbd, **QUICK))
    assert torch.equal(done.suspicion.flagged, done.suspicion.score > -0.5)


def test_what_is_learnt_at_once_weighs_little() -> None:
    poisoned = poison()
    done = cbd(poisoned.seen, net=partial(ResNet, width=8, blocks=(1, 1)), epochs=(2, 20), batch=64, rate=0.05)
    assert auroc(done.suspicion.score, poisoned.rows) > 0.8
    assert success(done.model, poisoned.trigger) < 0.5
    assert accuracy(done.model) > 0.85
