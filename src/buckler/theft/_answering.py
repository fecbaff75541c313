"""A model whose scores are changed before anybody sees them: what the guards of the area are."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

SMALLEST = 1e-30
"""What a score of nothing is taken as, so that it has a logarithm."""


class Answering(nn.Module):
    """`model` with its scores changed by `change`, `(B, K)` to `(B, K)` non-negative; logits come out as logarithms.

    Scores are divided by their sum where a softmax is taken. `model` itself is held under the prefix `model.`; an
    adaptive attack on inputs goes through it.
    """

    def __init__(self, model: nn.Module, change: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.model, self.change = model, change
        self.training = model.training

    def forward(self, x: Tensor) -> Tensor:
        return self.change(self.model(x).softmax(1)).clamp_min(SMALLEST).log()

    def surrogate(self) -> nn.Module:
        return self.model


def first_kept(changed: Tensor, scores: Tensor) -> Tensor:
    """`changed` with the label that `scores` say a trifle ahead where it would only tie with others."""
    top = scores.argmax(1, keepdim=True)
    return changed.scatter(1, top, changed.gather(1, top) + 1e-6)
