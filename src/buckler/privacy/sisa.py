"""SISA: a committee whose members share no row, so that a row is forgotten by training one of them again, in part.

Bourtoule, Chandrasekaran, Choquette-Choo, Jia, Travers, Zhang, Lie and Papernot, "Machine unlearning", IEEE S&P 2021,
https://arxiv.org/abs/1912.03817.

Rows are sharded, each shard is cut into slices, and a member learns from the first slice, then from the first two, and
so on, its weights being kept each time. To forget a row its member goes back to the weights from before its slice.

Differs from the paper: the shard and slice of a row are said by its content and the seed, so that a training that never
had the rows would deal the others alike; a slice's training begins with fresh momentum; answers are the members'
mean probabilities, which the paper compares with the vote; and the weights are kept for the time of the call only.

Guarantees that the model after is, weight for weight, the one that training without the rows with the same seed gives,
on one machine, if `net` and the choice of every knob owe nothing to the rows. It does not hide that rows were
forgotten: who has both models' answers sees what changed (Chen et al., CCS 2021, https://arxiv.org/abs/2005.02205).

Tags: atlas:AML.T0024.000, nist-ai-100-2:NISTAML.033, owasp-ml:ML04.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from buckler.data import Rows, count
from buckler.kinds import Forgotten
from buckler.privacy._forgotten import staying
from buckler.privacy._parts import parted
from buckler.train import fit, started


def sisa(
    data: Rows,
    forget: Tensor,
    *,
    net: Callable[[], nn.Module],
    shards: int = 4,
    slices: int = 2,
    epochs: float = 30,
    batch: int = 64,
    rate: float = 0.1,
    seed: int = 0,
) -> Forgotten:
    """Train a committee on `data`, `x` `(N, ...)` and `y` `(N,)`, and forget the rows whose numbers `forget` `(M,)` is.

    Every member takes as many steps as `epochs` over its shard would. Returns the committee before and after, which
    answer with log-probabilities. The paper takes up to 20 shards, and slices up to 72. Raises `ValueError` for numbers
    of no row, and for no shard or no slice.
    """
    many = count(data)
    if min(shards, slices) < 1:
        raise ValueError(f"expected at least one shard and one slice, got {shards} and {slices}")
    left = staying(forget, many)
    parts = parted(data[0], shards * slices, seed)
    each = 2 * epochs / (slices + 1)

    def taught(model: nn.Module, rows: Tensor) -> nn.Module:
        """A copy of `model` that has learnt from `rows`; one row is nothing to learn from."""
        model = copy.deepcopy(model)
        lesson = data[0][rows], data[1][rows]
        return fit(model, lesson, epochs=each, batch=batch, rate=rate, seed=seed) if len(rows) > 1 else model.eval()

    before, after = list[nn.Module](), list[nn.Module]()
    again = total = 0
    for shard in range(shards):
        own = parts[shard * slices : (shard + 1) * slices]
        seen = [torch.cat(own[: stage + 1]) for stage in range(slices)]
        kept = [started(net, seed * shards + shard)]
        for rows in seen:
            kept.append(taught(kept[-1], rows))
        first = next((stage for stage, part in enumerate(own) if not bool(left[part].all())), slices)
        model = kept[first]
        for rows in seen[first:]:
            model = taught(model, rows[left[rows]])
        before.append(kept[-1])
        after.append(model)
        again += sum(int(left[rows].sum()) for rows in seen[first:])
        total += sum(int(left[rows].sum()) for rows in seen)
    return Forgotten(_Committee(before).eval(), _Committee(after).eval(), again / max(1, total))


class _Committee(nn.Module):
    """Answers with the logarithm of the members' mean probabilities."""

    def __init__(self, members: list[nn.Module]) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)

    def forward(self, x: Tensor) -> Tensor:
        said = torch.stack([member(x).log_softmax(1) for member in self.members])
        return said.logsumexp(0) - math.log(len(self.members))
