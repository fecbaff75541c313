"""The straight-through estimate that guards' surrogates share.

Bengio, Leonard and Courville, 2013, https://arxiv.org/abs/1308.3432; as an attack on guards, BPDA: Athalye, Carlini and
Wagner, ICML 2018, https://arxiv.org/abs/1802.00420.
"""

from __future__ import annotations

from torch import Tensor


def straight(hard: Tensor, soft: Tensor) -> Tensor:
    """The value of `hard`, to the last bit, with the gradient of `soft`."""
    return hard.detach() + (soft - soft.detach())
