"""Which rows stay, where some are to be forgotten."""

from __future__ import annotations

import torch
from torch import Tensor


def staying(forget: Tensor, many: int) -> Tensor:
    """Which of `many` rows stay `(many,)`, if those whose numbers are `forget` `(M,)` go; a `ValueError` for what is
    the number of no row, and for a mask, whose values would be read as numbers."""
    if forget.dtype == torch.bool or forget.is_floating_point():
        raise ValueError(f"expected whole numbers of rows to forget, such as a mask's nonzero(), got {forget.dtype}")
    if bool(((forget < 0) | (forget >= many)).any()):
        raise ValueError(f"expected numbers of rows between 0 and {many - 1}, got {forget.tolist()[:5]}")
    left = torch.ones(many, dtype=torch.bool)
    left[forget.long()] = False
    return left
