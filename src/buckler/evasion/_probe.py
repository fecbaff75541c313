"""What the mechanism probes share."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

Reach = Literal["linf", "l2", "l1"]
"""The norm an adversary is limited in."""


def dual(grad: Tensor, norm: Reach) -> Tensor:
    """The most that a step of length 1 in `norm` can gain along every row of `grad` `(B, ...)`: `(B,)`."""
    flat = grad.flatten(1).abs()
    if norm == "linf":
        return flat.sum(1)
    if norm == "l2":
        return flat.norm(dim=1)
    if norm == "l1":
        return flat.amax(1)
    raise ValueError(f"expected linf, l2 or l1, got {norm!r}: l0 has no gradient norm")
