"""What shadow models answer to rows of which it is known who learnt from them: the material of membership inference.

The adversary has rows of the target's distribution and trains models of its own on halves of them. What is kept of a
model are its answers, never its weights.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from buckler.target import Oracle

TINY = 1e-45
"""The smallest number above 0 in float32: what an answer of 0 is taken for."""
LARGEST = 18


@dataclass(frozen=True, eq=False)
class Shadows:
    """Answers of S models to the same N rows, seen in Q ways each: see `views`.

    `held` `(S, N)` is true where a model learnt from a row; `answers` are S tensors `(N, Q, K)` of log-probabilities,
    float32, which may lie in files; `labels` `(N,)` are the rows' own.
    """

    held: Tensor
    answers: Sequence[Tensor]
    labels: Tensor

    @property
    def views(self) -> int:
        """In how many ways each row was shown."""
        return self.answers[0].shape[1]

    def rows(self, index: Tensor) -> Shadows:
        """The same models on the rows that `index` `(M,)` names."""
        return Shadows(self.held[:, index], [answers[index] for answers in self.answers], self.labels[index])

    def confidences(self) -> Tensor:
        """The scaled confidence of every model in every row's label, `(S, N, Q)` float64: see `confidence`."""
        return torch.stack([confidence(answers, self.labels) for answers in self.answers])

    def fit(self, x: Tensor) -> None:
        """A `ValueError` unless there is an answer of every shadow to every row of `x` `(B, ...)`."""
        if self.held.shape != (len(self.answers), len(x)) or len(self.labels) != len(x):
            raise ValueError(
                f"expected shadows that were asked about these {len(x)} rows, got {len(self.answers)} shadows of "
                f"{self.held.shape[1]} rows"
            )


def confidence(answers: Tensor, y: Tensor) -> Tensor:
    """log p_y - log(1 - p_y) out of log-probabilities `(B, Q, K)`, float64 `(B, Q)`.

    1 - p_y is summed over the other classes, so that nothing is lost where p_y is nearly 1.
    """
    log = answers.double()
    own = F.one_hot(y, log.shape[-1]).bool()[:, None].expand(log.shape)
    return log[own].view(log.shape[:-1]) - log.masked_fill(own, -torch.inf).logsumexp(-1)


def answers_of(oracle: Oracle, x: Tensor, many: int) -> Tensor:
    """The log-probabilities that an oracle's scores say of the `views` of the rows of `x`: `(B, Q, K)` on the CPU."""
    seen = [oracle(view).clamp_min(TINY).log().float().cpu() for view in views(x, many)]
    return torch.stack(seen, 1)


def views(x: Tensor, many: int) -> Iterator[Tensor]:
    """`x` `(B, ...)` in [0, 1] as it is, then mirrored, then both moved by one or two pixels: `many` in all.

    Target and shadows are shown the same. What moves in at an edge repeats the edge. A `ValueError` where more than
    one is asked of what are no images, or more than there are.
    """
    if not 1 <= many <= LARGEST or (many > 1 and x.ndim != 4):
        kind = "of images (B, C, H, W)" if x.ndim != 4 else f"of which there are {LARGEST}"
        raise ValueError(f"expected at least 1 view, and more than 1 only {kind}, got {many}")
    step = 1 if x.ndim == 4 and x.shape[-1] < 16 else 2
    moves = [(0, 0), *((a * step, b * step) for a in (-1, 0, 1) for b in (-1, 0, 1) if (a, b) != (0, 0))]
    for place in range(many):
        down, right = moves[place // 2]
        view = x.flip(-1) if place % 2 else x
        yield _moved(view, down, right) if place > 1 else view


def _moved(x: Tensor, down: int, right: int) -> Tensor:
    height, width = x.shape[-2:]
    reach = max(abs(down), abs(right))
    padded = F.pad(x, (reach, reach, reach, reach), mode="replicate")
    return padded[..., reach - down : reach - down + height, reach - right : reach - right + width]
