"""What the white-box searches share: when a row is fooled, what they climb, and one gradient.

B rows, K classes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Objective = Literal["ce", "dlr", "margin"]
Goal = Tensor | int | None
"""A target label per row `(B,)`, one for all rows, or None for any wrong label."""


def aim(goal: Goal, y: Tensor) -> Tensor | None:
    """The target labels `(B,)`, or None."""
    return torch.full_like(y, goal) if isinstance(goal, int) else goal


def fooled(logits: Tensor, y: Tensor, goal: Tensor | None) -> Tensor:
    """Whether every row of `logits` `(B, K)` is what the adversary wants: `(B,)`."""
    return logits.argmax(1) != y if goal is None else logits.argmax(1) == goal


def _best_other(logits: Tensor, y: Tensor) -> Tensor:
    return logits.scatter(1, y[:, None], -torch.inf).amax(1)


def ascend(objective: Objective, logits: Tensor, y: Tensor, goal: Tensor | None) -> Tensor:
    """What an attack climbs, `(B,)`; it is invariant to shifts of the logits, and `dlr` also to their scale.

    `ce` cross-entropy; `margin` the best wrong logit (or the target's) less the true one; `dlr` that margin over the
    spread of the leading logits (Croce and Hein, ICML 2020, https://arxiv.org/abs/2003.01690), which needs three
    classes, four when targeted.
    """
    if objective == "ce":
        return (
            F.cross_entropy(logits, y, reduction="none")
            if goal is None
            else -F.cross_entropy(logits, goal, reduction="none")
        )
    own = logits.gather(1, y[:, None]).squeeze(1)
    other = _best_other(logits, y) if goal is None else logits.gather(1, goal[:, None]).squeeze(1)
    if objective == "margin":
        return other - own
    ordered = logits.sort(1, descending=True).values
    spread = ordered[:, 0] - (ordered[:, 2] if goal is None else (ordered[:, 2] + ordered[:, 3]) / 2)
    return (other - own) / (spread + 1e-12)


def gradient(model: nn.Module, x: Tensor, objective: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """Logits `(B, K)`, objective `(B,)` and its gradient `(B, ...)` at `x`; builds gradients for the input alone.

    A model whose answers do not depend on the input differentiably has a gradient of zero: the doubt checks tell.
    """
    x = x.detach().requires_grad_()
    logits = model(x)
    loss = objective(logits)
    if not loss.requires_grad:
        return logits, loss, torch.zeros_like(x)
    (grad,) = torch.autograd.grad(loss.sum(), x, materialize_grads=True)
    return logits.detach(), loss.detach(), grad
