"""Encoders that do more work for some inputs than for others, and how one is served like that."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Protocol, runtime_checkable

from torch import Tensor, nn

from buckler.encoders._early_exit import early_exit, in_blocks
from buckler.encoders._token_pruning import token_pruned
from buckler.nets import VisionTransformer


@runtime_checkable
class Adaptive(Protocol):
    """What such an encoder can say of images `x` `(B, C, H, W)`: the work that each takes, `spent` `(B,)`, where the
    plain encoder takes 1; and `pressure` `(B,)`, which grows with it and has a slope. While it is `capped`, no query
    takes more than one of `x` in the mean."""

    def __call__(self, x: Tensor) -> Tensor: ...
    def spent(self, x: Tensor) -> Tensor: ...
    def pressure(self, x: Tensor) -> Tensor: ...
    def capped(self, x: Tensor) -> AbstractContextManager[None]: ...


def adaptive(encoder: nn.Module, x: Tensor) -> Adaptive | None:
    """`encoder` with token pruning if it is a `VisionTransformer`, with early exits if it is four blocks or more that
    follow each other, both set by honest images `x` `(N, C, H, W)`; none where neither can be."""
    if isinstance(encoder, VisionTransformer):
        return token_pruned(encoder, x)
    return early_exit(encoder, x) if len(in_blocks(encoder)) >= 4 else None
