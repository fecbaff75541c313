"""A model with a backdoor, and how well it works, for the tests of what removes or finds backdoors."""

import copy
from functools import cache

import torch
from torch import nn

from buckler.data import digits
from buckler.nets import ResNet, SmallCNN
from buckler.poisoning.badnets import badnets
from buckler.threat import Share
from buckler.train import fit, started

TARGET = 3


@cache
def _poisoned():
    return badnets(digits(True), share=Share(0.1), target=TARGET, margin=0)


@cache
def _trained(residual, backdoor):
    net = (lambda: ResNet(width=16, blocks=(1, 1))) if residual else (lambda: SmallCNN(width=8))
    data = _poisoned().seen if backdoor else digits(True)
    return fit(started(net, 0), data, epochs=3 if residual else 12, batch=64, rate=0.1 if residual else 0.05)


def trained(residual=False, backdoor=True):
    """A copy of a model of digits, and the clean rows that a defender holds: 400 of those for testing."""
    x, y = digits(False)
    return copy.deepcopy(_trained(residual, backdoor)), (x[:400], y[:400])


def untrained(width=16):
    """A small residual network as it is drawn, and a few rows of digits: for tests of manners only."""
    x, y = digits(False)
    return started(lambda: ResNet(width=width, blocks=(1, 1)), 0), (x[:96], y[:96])


def accuracy(model):
    x, y = digits(False)
    with torch.no_grad():
        return float((model(x[400:]).argmax(1) == y[400:]).float().mean())


def success(model):
    """The share of inputs of other classes that the trigger turns into the target."""
    x, y = digits(False)
    x = x[400:][y[400:] != TARGET]
    with torch.no_grad():
        return float((model(_poisoned().trigger(x)).argmax(1) == TARGET).float().mean())


def state(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(model, kept):
    return all(torch.equal(value, kept[name]) for name, value in model.state_dict().items())


def check_a_copy_is_repaired(repair, model, clean):
    """The given model, its flags and the data stay as they are, nothing is left hooked, and the copy is evaluating."""
    model.train()
    kept, x, draw = state(model), clean[0].clone(), torch.random.get_rng_state()
    repaired = repair(model, clean)
    assert same(model, kept)
    assert model.training
    assert all(parameter.requires_grad for parameter in (*model.parameters(), *repaired.parameters()))
    assert not any(module._forward_hooks for whole in (model, repaired) for module in whole.modules())
    assert torch.equal(clean[0], x)
    assert torch.equal(torch.random.get_rng_state(), draw)
    assert repaired is not model
    assert not repaired.training
    assert list(repaired.state_dict()) == list(kept)
    again = repair(model, clean)
    assert same(again, state(repaired)), "the same seed, the same repair"
    return repaired


class Flat(nn.Module):
    """No convolution, no batch norm, no feature map."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(64, 10)

    def forward(self, x):
        return self.head(x.flatten(1))


class Untraceable(nn.Module):
    """What is computed depends on the values."""

    def __init__(self):
        super().__init__()
        self.inner = SmallCNN(width=2)

    def forward(self, x):
        return self.inner(x) if x.sum() > 0 else self.inner(-x)
