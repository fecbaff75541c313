"""Noise on answers: every score is off by a little, and always by the same for the same input.

Shokri, Stronati, Song and Shmatikov, "Membership inference attacks against machine learning models", S&P 2017,
https://arxiv.org/abs/1610.05820, section VIII, where scores are made to say less (top k, rounding, a temperature).

Differs from the paper: normal noise in place of fewer digits, which is what later work compares with as the plain
defence (Jia et al., "MemGuard", CCS 2019). The noise belongs to the content of the input, so that asking the same again
shows nothing new; inputs that hardly differ have noise of their own.

No guarantee: who asks about many inputs that hardly differ from a row, and takes the mean of the answers, undoes it.
Labels are as they were unless `keep_label` is off, so that attacks that look at labels alone find what they found; and
noise that is smaller than what members and other rows differ by hides nothing.

Tags: atlas:AML.M0002, nist-ai-100-2:NISTAML.033, owasp-ml:ML04.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from buckler.dice import Dice
from buckler.kinds import Defended

SMALLEST = 1e-30


def noise(model: nn.Module, *, size: float = 0.1, keep_label: bool = True, seed: int = 0) -> Defended:
    """`model` with normal noise of standard deviation `size` on every score, cut off at 0, and divided by the sum.

    With `keep_label` the leading score goes to the class that led before. Returns a module `(B, ...)` to logits
    `(B, K)`. Raises `ValueError` for a size that is not above 0.
    """
    if not 0 < size < float("inf"):
        raise ValueError(f"expected a size of noise above 0, got {size}")
    return Noisy(model, size, keep_label, seed)


class Noisy(nn.Module):
    """The guarded model; an adaptive attack on inputs goes through `model` itself."""

    def __init__(self, model: nn.Module, size: float, keep_label: bool, seed: int) -> None:
        super().__init__()
        self.model, self.size, self.keep_label, self.seed = model, size, keep_label, seed
        self.training = model.training

    def forward(self, x: Tensor) -> Tensor:
        scores = self.model(x).softmax(1)
        changed = (scores + self.size * Dice(x, self.seed).normal(scores.shape[1]).to(scores)).clamp_min(SMALLEST)
        if self.keep_label:
            own, top = scores.argmax(1, keepdim=True), changed.argmax(1, keepdim=True)
            low, high = changed.gather(1, own), changed.gather(1, top)
            changed = changed.scatter(1, top, low).scatter(1, own, torch.maximum(high, torch.tensor(2 * SMALLEST)))
        return (changed / changed.sum(1, keepdim=True)).log()

    def surrogate(self) -> nn.Module:
        return self.model
