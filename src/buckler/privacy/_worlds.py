"""Models trained on rows of which a class has one share or another: the material of property inference."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, eq=False)
class Worlds:
    """What S models answer to Q rows, log-probabilities `(S, Q, K)`, and which of the `shares` of class `label` was in
    the rows of each, `(S,)`."""

    answers: Tensor
    which: Tensor
    label: int
    shares: tuple[float, ...]

    def fit(self, x: Tensor, label: int, shares: tuple[float, ...]) -> None:
        """A `ValueError` unless these are of this question, and were asked about rows as many as `x` `(Q, ...)`."""
        if (self.label, self.shares) != (label, shares):
            raise ValueError(
                f"expected models of class {label} with shares {shares}, got {self.label} and {self.shares}"
            )
        if self.answers.shape[1] != len(x) or len(self.which) != len(self.answers):
            raise ValueError(f"expected answers to these {len(x)} rows, got {tuple(self.answers.shape)}")
