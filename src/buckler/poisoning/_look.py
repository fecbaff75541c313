"""What the defences look at: answers, losses and features of every row, in one pass over the data."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from buckler.data import Rows, batches, floats
from buckler.nets import features as features
from buckler.nets import inputs_of as inputs_of
from buckler.nets import last_linear as last_linear
from buckler.nets import where as where
from buckler.target import frozen

BATCH = 512


def logits(model: nn.Module, data: Rows) -> Tensor:
    """What `model` answers to every row, evaluating: `(N, K)`, on the CPU."""
    with torch.no_grad(), frozen(model):
        return torch.cat([model(x.to(where(model))).cpu() for x, _ in batches(data, BATCH)])


def outputs(model: nn.Module, data: Rows) -> int:
    """How many classes `model` tells apart; a `ValueError` unless it answers rows with scores for all their labels."""
    x, y = data
    with torch.no_grad(), frozen(model):
        out = cast(object, model(floats(x[:1]).to(where(model))))
    if not isinstance(out, Tensor) or out.ndim != 2 or len(out) != 1:
        got = str(tuple(out.shape)) if isinstance(out, Tensor) else type(out).__name__
        raise ValueError(f"expected a model that answers one row with scores (1, K), got {got}")
    if int(y.max()) >= out.shape[1]:
        raise ValueError(f"expected labels of 0 to {out.shape[1] - 1}, as the model has, got {int(y.max())}")
    return out.shape[1]


def losses(model: nn.Module, data: Rows) -> Tensor:
    """The cross-entropy of every row, evaluating: `(N,)`, on the CPU."""
    return F.cross_entropy(logits(model, data), data[1].cpu(), reduction="none")


def accuracy(model: nn.Module, data: Rows) -> float:
    """The share of rows that `model` answers with their label, evaluating."""
    return float((logits(model, data).argmax(1) == data[1].cpu()).double().mean())
