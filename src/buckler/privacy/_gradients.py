"""What a client sends of its rows: the gradient of its loss in every parameter; and which labels that tells."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

Gradients: TypeAlias = tuple[Tensor, ...]
"""A gradient for every parameter of a model, in their order."""
Through: TypeAlias = Callable[[Gradients], Gradients]
"""What a client does to its gradients before it sends them, as far as it can be differentiated."""


def gradients(model: nn.Module, x: Tensor, y: Tensor, *, differentiable: bool = False) -> Gradients:
    """The gradient of the mean cross-entropy of rows `x` `(B, ...)` in every parameter of `model`, as it stands.

    `y` is labels `(B,)` or probabilities `(B, K)`. If `differentiable` it can be differentiated again, in `x` and `y`.
    """
    held = {name: weight.detach().requires_grad_() for name, weight in model.named_parameters()}
    with torch.enable_grad():
        loss = F.cross_entropy(functional_call(model, held, (x,)), y)
        found = torch.autograd.grad(loss, list(held.values()), create_graph=differentiable, materialize_grads=True)
    return found


def checked(model: nn.Module, update: Gradients, shape: tuple[int, ...], batch: int) -> None:
    """A `ValueError` unless `update` fits the parameters of `model`, and rows of `shape` were asked for."""
    sizes = [tuple(weight.shape) for weight in model.parameters()]
    if [tuple(gradient.shape) for gradient in update] != sizes:
        raise ValueError(
            f"expected a gradient for each of the model's {len(sizes)} parameters, in their shapes, got {len(update)}"
        )
    if batch < 1 or not shape or min(shape) < 1:
        raise ValueError(f"expected a batch of one row or more and a row's shape, got {batch} and {shape}")


def size(update: Gradients) -> Tensor:
    """The Euclidean norm of all of it."""
    return torch.stack([gradient.square().sum() for gradient in update]).sum().sqrt()


def told_labels(model: nn.Module, update: Gradients, batch: int) -> Tensor:
    """The labels `(B,)` of the rows that made `update`, lowest first, read off the last layer's gradient.

    The bias of class k has the gradient (sum of p_k - how many rows are k) / B, so every row is worth 1 / B: the class
    with the lowest gradient is named, 1 / B is given back to it, and so on until there are B labels. Of one row this is
    exact (Zhao et al.); of more, where the model's answers are even. Without a bias the weights of a class are summed,
    which follows it where features are not negative, and a row is worth what all that is below 0 gives one (Wainakh et
    al., PETS 2022). A `ValueError` for a model without a last linear layer.
    """
    named = {name: gradient for (name, _), gradient in zip(model.named_parameters(), update, strict=True)}
    weights = [name for name, gradient in named.items() if gradient.ndim == 2]
    if not weights:
        raise ValueError("expected a model that ends in a linear layer, whose gradient tells labels, got one without")
    bias = weights[-1].removesuffix("weight") + "bias"
    left = (named[bias] if bias in named else named[weights[-1]].sum(1)).double().clone()
    worth = 1 / batch if bias in named else float(-left.clamp_max(0).sum()) / batch
    found: list[int] = []
    for _ in range(batch):
        found.append(int(left.argmin()))
        left[found[-1]] += worth
    return torch.tensor(sorted(found), device=left.device)


def total_variation(x: Tensor) -> Tensor:
    """The mean absolute difference of neighbours in images `(B, C, H, W)`, along both sides; 0 for what is none."""
    if x.ndim != 4:
        return x.new_zeros(())
    sides = ((x[..., 1:, :] - x[..., :-1, :]), (x[..., 1:] - x[..., :-1]))
    return (
        torch.stack([side.abs().mean() for side in sides if side.numel()]).sum() if x[0, 0].numel() > 1 else x.sum() * 0
    )
