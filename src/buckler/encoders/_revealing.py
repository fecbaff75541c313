"""An encoder whose features are changed before anybody sees them: what the guards against thieves are."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn


class Revealing(nn.Module):
    """`model` with its features `(B, D)` changed by `change`, which is told of the inputs `(B, ...)` as well.

    `model` itself is held under the prefix `model.`; an attack on inputs that expects the guard goes through it.
    """

    def __init__(self, model: nn.Module, change: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.model, self.change = model, change
        self.training = model.training

    def forward(self, x: Tensor) -> Tensor:
        return self.change(self.model(x), x)

    def surrogate(self) -> nn.Module:
        return self.model
