"""What the inferences of membership share: the adversary's own encoders, of which it knows what they learnt from.

An image is easy or hard for any encoder, and that hides who learnt from it. So what is read off an encoder is compared
with what encoders that did not learn from the image show of the very same views, as in the calibration of Watson, Guo,
Cormode and Sablayrolles (ICLR 2022, https://arxiv.org/abs/2111.08440), by a line instead of a difference.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from buckler.data import floats
from buckler.dice import fingerprint_rows
from buckler.embedding import embedded
from buckler.encoders._contrast import views
from buckler.target import Oracle

Read = Callable[[nn.Module | Oracle, Tensor], Tensor]
"""What is read off an encoder about each of the rows `(B, C, H, W)`: `(B, P)`, on the CPU."""
TEMPERATURE = 0.2


class Known(NamedTuple):
    """What an adversary knows of how an encoder was made: from which kind of `rows`, with which network, by which
    algorithm. What it does not know it replaces by something else."""

    rows: bool = True
    net: bool = True
    algorithm: bool = True


@dataclass(frozen=True, eq=False)
class Shadows:
    """Encoders of the adversary: the i-th learnt from `rows[i]` `(N_i, C, H, W)` and from nothing else, and none from
    `unseen` `(N, C, H, W)`."""

    encoders: tuple[nn.Module, ...]
    rows: tuple[Tensor, ...]
    unseen: Tensor

    def __post_init__(self) -> None:
        if len(self.encoders) < 2 or len(self.rows) != len(self.encoders) or len(self.unseen) < 2:
            raise ValueError(
                f"expected two shadow encoders or more, rows for each, and two rows that none learnt from, got "
                f"{len(self.encoders)} encoders, {len(self.rows)} sets of rows and {len(self.unseen)} unseen rows"
            )

    def without(self, index: int) -> Shadows:
        """Those but one."""
        kept = [place for place in range(len(self.rows)) if place != index]
        return replace(
            self,
            encoders=tuple(self.encoders[place] for place in kept),
            rows=tuple(self.rows[place] for place in kept),
        )


Shadowing = Callable[[Known], Shadows]
"""Makes shadows with what is known."""


def readings(
    read: Read, oracle: Oracle, x: Tensor, shadows: Shadows, *, calibrated: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """What is read of the rows `x` off the target, `(B, P)`, and what is read off the shadows, `(M, P)`, of rows of
    which it is known who learnt from them, `(M,)`; `calibrated` by the encoders that did not learn from them."""
    x, unseen = floats(x), floats(shadows.unseen)
    asked = torch.cat([x, unseen.to(x)])
    target = read(oracle, asked)
    if calibrated:
        usual = torch.stack([read(encoder, asked) for encoder in shadows.encoders]).mean(0)
        target = beyond(target, usual, torch.arange(len(asked)) >= len(x))
    pool = torch.cat([*map(floats, shadows.rows), unseen.to(shadows.rows[0].device)])
    whose = torch.cat([torch.full((len(rows),), i) for i, rows in enumerate((*shadows.rows, shadows.unseen))])
    found, lessons, member = [read(encoder, pool) for encoder in shadows.encoders], list[Tensor](), list[Tensor]()
    for index, seen in enumerate(found):
        known = (whose == index) | (whose == len(found))
        outside = whose[known] != index
        if calibrated:
            others = torch.stack([one[known] for place, one in enumerate(found) if place != index])
            lessons.append(beyond(seen[known], others.mean(0), outside))
        else:
            lessons.append(seen[known])
        member.append(~outside)
    return target[: len(x)], torch.cat(lessons), torch.cat(member)


def beyond(seen: Tensor, usual: Tensor, known: Tensor) -> Tensor:
    """What is `seen` `(N, P)` beyond what is `usual` for the same rows `(N, P)`: the line through the means of the rows
    that are `known` `(N,)` not to have been learnt from is taken off, and what is left divided by their spread."""
    mean, like = seen.mean(1)[known], usual.mean(1)[known]
    slope = ((mean - mean.mean()) * (like - like.mean())).sum() / (like - like.mean()).square().sum().clamp_min(1e-12)
    left = seen - slope * usual
    rest = left.mean(1)[known]
    return (left - rest.mean()) / rest.std().clamp_min(1e-6)


def alike(
    encoder: nn.Module | Oracle, x: Tensor, *, asked: int, least: float, seed: int, others: Tensor | None = None
) -> Tensor:
    """The cosines of all pairs of `asked` views of every row, crops of at least the share `least`, which are the same
    for every encoder: `(B, asked (asked - 1) / 2)`; with `others`, each less how alike its views are to views of those
    but the row itself, as the loss of contrastive learning has it."""
    if asked < 2 or x.ndim != 4:
        raise ValueError(f"expected images (B, C, H, W) and two views or more, got {tuple(x.shape)} and {asked}")
    whole = floats(x) if others is None else torch.cat([floats(x), floats(others).to(x.device)])
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        seen = torch.stack([embedded(encoder, views(least)(whole)) for _ in range(asked)], 1)
    z, apart = F.normalize(seen, dim=2).tensor_split([len(x)])
    first, second = torch.triu_indices(asked, asked, 1)
    pairs = (z @ z.transpose(1, 2))[:, first, second] / TEMPERATURE
    if others is None:
        return pairs
    other = (fingerprint_rows(whole[: len(x)])[:, None] != fingerprint_rows(whole[len(x) :])).cpu()
    other = other.repeat_interleave(asked, 1)
    near = z @ apart.flatten(0, 1).T / TEMPERATURE
    far = near.masked_fill(~other[:, None], -torch.inf).logsumexp(2) - other.sum(1, keepdim=True).log()
    return pairs - (far[:, first] + far[:, second]) / 2
