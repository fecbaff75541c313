"""Models and rows for attacks that minimise a norm."""

from functools import cache

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional as F

from buckler.nets import LinearModel, SmallCNN


def linear(rows=16, classes=4, side=5, seed=3, scale=1.0, near=True):
    """A linear model and rows it is right about; if `near`, so close to a boundary that the box does not matter."""
    draw = torch.Generator().manual_seed(seed)
    model = LinearModel(
        scale * torch.randn(classes, side * side, generator=draw), 0.1 * scale * torch.randn(classes, generator=draw)
    )
    x = 0.45 + 0.1 * torch.rand(rows, 1, side, side, generator=draw)
    if near:
        model.bias.data.sub_(F.linear(x.flatten(1).mean(0), model.weight.data))
    return model, x, model(x).argmax(1)


@cache
def digits():
    """A small network trained for a second on scikit-learn's digits, and 60 rows it has not seen."""
    images, labels = load_digits(return_X_y=True)
    x, y = torch.tensor(images, dtype=torch.float32).view(-1, 1, 8, 8) / 16, torch.tensor(labels)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = SmallCNN(width=8)
        optimizer = torch.optim.Adam(model.parameters(), 4e-3)
        for start in list(range(0, 1536, 64)) * 3:
            loss = F.cross_entropy(model(x[start : start + 64]), y[start : start + 64])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return model.eval(), x[1700:1760], y[1700:1760]


def norms(model, x, y, moved, p):
    """The norm of every row's change, infinite where it does not fool the model."""
    with torch.no_grad():
        missed = model(moved).argmax(1) == y
    return (moved - x).flatten(1).norm(p, dim=1).masked_fill(missed, torch.inf)


class Sure(nn.Module):
    """The same answers, so sure of them that the softmax is exact in float32."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return 1e5 * self.inner(x)


class Counting(nn.Module):
    """How many rows were asked at each call."""

    def __init__(self, inner):
        super().__init__()
        self.inner, self.rows = inner, []

    def forward(self, x):
        self.rows.append(len(x))
        return self.inner(x)
