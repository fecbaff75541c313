"""Randomness that belongs to a row, not to a batch.

Attacks draw from `Dice`, keyed by the content of each row and a seed. So a row meets the same random start whatever
its batch is, whatever its place in it, and however many other rows were dropped before: the same seed gives the same
adversarial examples at batch size 1 and 1,000. The generator is counter-based (SplitMix64: Steele, Lea and Flood,
"Fast splittable pseudorandom number generators", OOPSLA 2014, https://doi.org/10.1145/2660193.2660195); it is for
search and simulation, never for secrets.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

_GOLDEN = -7046029254386353131  # 0x9E3779B97F4A7C15 as a signed 64-bit integer
_MIX1 = -4658895280553007687  # 0xBF58476D1CE4E5B9
_MIX2 = -7723592293110705685  # 0x94D049BB133111EB


def _shift(z: Tensor, bits: int) -> Tensor:
    return (z >> bits) & ((1 << (64 - bits)) - 1)


def _mix(z: Tensor) -> Tensor:
    z = (z ^ _shift(z, 30)) * _MIX1
    z = (z ^ _shift(z, 27)) * _MIX2
    return z ^ _shift(z, 31)


def _word(number: int) -> int:
    """`number` as 64 bits with a sign hold it."""
    return (number + 2**63) % 2**64 - 2**63


def fingerprint_rows(x: Tensor) -> Tensor:
    """A 64-bit fingerprint of the content of every row of `x` `(B, ...)`, float or integer: `(B,)` int64."""
    flat = x.detach().flatten(1)
    bits = flat.float().contiguous().view(torch.int32).long() if flat.is_floating_point() else flat.long()
    place = _mix(torch.arange(1, flat.shape[1] + 1, device=x.device) * _GOLDEN) | 1
    return _mix((bits * place).sum(1))


class Dice:
    """A stream of draws for each of B rows. Successive calls give fresh, independent numbers."""

    def __init__(self, x: Tensor, seed: int = 0) -> None:
        self._keys = _mix(fingerprint_rows(x) + _mix(torch.tensor(_word(seed * 2 + 1), device=x.device) * _GOLDEN))
        self._count = 0

    def keep(self, index: Tensor) -> None:
        """Go on with the rows that `index` (boolean or integer) selects."""
        self._keys = self._keys[index]

    def _bits(self, shape: tuple[int, ...]) -> Tensor:
        many = math.prod(shape)
        place = torch.arange(self._count + 1, self._count + many + 1, device=self._keys.device)
        self._count += many
        return _mix(self._keys[:, None] + place * _GOLDEN).view(-1, *shape)

    def uniform(self, *shape: int) -> Tensor:
        """Uniform in [0, 1): `(B, *shape)`, float32."""
        return _shift(self._bits(shape), 40).float() * 2.0**-24

    def signs(self, *shape: int) -> Tensor:
        """-1 or 1 with equal chance: `(B, *shape)`, float32."""
        return ((self._bits(shape) & 1) * 2 - 1).float()

    def below(self, high: int | Tensor, *shape: int) -> Tensor:
        """Integers in [0, high): `(B, *shape)`, int64; `high` is a number or broadcasts against the result."""
        return (self.uniform(*shape).double() * high).long()

    def normal(self, *shape: int) -> Tensor:
        """Standard normal: `(B, *shape)`, float32 (Box and Muller)."""
        first = (_shift(self._bits(shape), 40).float() + 1) * 2.0**-24
        return (-2 * first.log()).sqrt() * (2 * math.pi * self.uniform(*shape)).cos()
