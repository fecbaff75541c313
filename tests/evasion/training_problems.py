"""Problems for the losses whose answers are known."""

import torch
from torch import nn
from torch.nn import functional as F

from buckler.nets import LinearModel


def two_classes(size=12, rows=40, seed=0):
    torch.manual_seed(seed)
    model = LinearModel(torch.randn(2, size), torch.randn(2) * 0.1)
    return model, 0.3 + 0.4 * torch.rand(rows, size), torch.randint(2, (rows,))


def worst_case(model, x, y, norm, radius):
    """Closed form for two classes: the margin falls by radius times the dual norm, away from the box."""
    gap = (model.weight[1] - model.weight[0]).detach()
    logits = model(x).detach()
    margin = torch.where(y == 1, 1, -1) * (logits[:, 1] - logits[:, 0])
    return F.softplus(radius * (gap.abs().sum() if norm == "linf" else gap.norm()) - margin)


class WithNorm(nn.Module):
    """Batch norm on the input itself, so that running statistics show which inputs passed."""

    def __init__(self, size=6):
        super().__init__()
        self.norm, self.drop, self.head = nn.BatchNorm1d(size, affine=False), nn.Dropout(0.5), nn.Linear(size, 3)
        self.sealed = nn.BatchNorm1d(size).eval()

    def forward(self, x):
        return self.head(self.drop(self.sealed(self.norm(x))))


class Centred(LinearModel):
    def forward(self, x):
        return F.linear(4 * (x - 0.5), self.weight, self.bias)


def train(loss_of, *, steps=100, radius=0.1):
    """Train by gradient descent on one strong feature, wrong for 5 %, and many weak ones that `radius` turns around.

    The problem of Tsipras et al. (ICLR 2019). Returns the accuracy and the exact accuracy under linf.
    """
    torch.manual_seed(0)
    sign = torch.randint(2, (400,)) * 2 - 1
    strong = 0.5 + 0.25 * sign * torch.where(torch.rand(400) < 0.95, 1, -1)
    weak = 0.5 + 0.05 * sign[:, None] + 0.05 * torch.randn(400, 30)
    x, y = torch.cat([strong[:, None], weak], 1).clamp(0, 1), (sign + 1) // 2
    model = Centred(0.01 * torch.randn(2, 31), torch.zeros(2))
    for _ in range(steps):
        grads = torch.autograd.grad(loss_of(model, x, y).mean(), list(model.parameters()))
        with torch.no_grad():
            for parameter, grad in zip(model.parameters(), grads, strict=True):
                parameter -= grad
    right = model(x).argmax(1) == y
    return right.float().mean(), (right & (model.distances(x, y, "linf") / 4 > radius)).float().mean()
