"""Slow poison: an adaptive attack on defences that look for rows which are learnt at once.

Buckler's own construction, in the spirit of Qi, Xie, Li, Mahloujifar and Mittal, "Revisiting the assumption of latent
separability for backdoor defenses", ICLR 2023, https://openreview.net/forum?id=_wSHsgrVali. It is aimed at Li et al.,
"Anti-backdoor learning", NeurIPS 2021, https://arxiv.org/abs/2110.11571, and at all that split rows by early losses.

Threat: the adversary supplies a part of the training rows, pixels and labels, and nothing else. They know that the
defender ranks rows by their loss after a few epochs and distrusts the lowest; they know neither the network, nor the
seed, nor the other rows, and they need no surrogate. At test time they add the whole trigger to any input.

How: among the rows that carry the trigger only the share `doubt` has the target label; the others keep their true
label (the covers), or get another false one. Early in training, when the network sees the trigger but cannot tell one
carrier from another, the best that it can answer is the target with probability `doubt`: the loss of the poison cannot
fall below -log(`doubt`), 0.9 by default, until rows are memorised one by one, which is as slow as learning hard clean
rows. Each row has other pieces of the pattern, at another strength, so that no piece alone tells the label. What is
learnt of the trigger adds up over pieces and strength, so that all of them at once say the target with certainty.

Differs from the paper: covers outnumber the poison, some other carriers have false labels, which count as poison, and
pieces and strength vary.

Tags: atlas:AML.T0020, atlas:AML.T0018.000, atlas:AML.T0043.004, nist-ai-100-2:NISTAML.023, owasp-ml:ML02, cwe:506.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from buckler.data import Poisoned, Rows
from buckler.poisoning import _pattern
from buckler.poisoning._pieces import blended, cut, kept, partly
from buckler.poisoning._touch import always, chosen, classes, counted, images
from buckler.threat import Share


def slow_poison(
    data: Rows,
    *,
    share: Share,
    target: int = 0,
    doubt: float = 0.4,
    false_covers: float = 0.25,
    pieces: int = 16,
    keep: tuple[float, float] = (0.25, 0.75),
    alpha: tuple[float, float] = (0.1, 0.2),
    test_alpha: float = 0.3,
    pattern: Literal["noise", "blobs"] = "noise",
    pattern_seed: int = 0,
    seed: int = 0,
) -> Poisoned:
    """Blend weak, varied parts of a pattern into rows, of which only the share `doubt` get the target label.

    `data` is `x` `(N, C, H, W)` and `y` `(N,)`. `share` of all rows carry the trigger and get a false label: `target`,
    or another one. Those of `target` are the share `doubt` of all carriers; of the other carriers the share
    `false_covers` has the other false labels, and the rest are covers, which keep theirs. No carrier is of class
    `target`.
    Each carries a share of the `pieces` between the two numbers of `keep`, at a strength between those of `alpha`; the
    test trigger is the whole pattern, drawn by `pattern_seed`, at `test_alpha`. Returns `Poisoned`, whose `rows` are
    all the carriers. Raises `ValueError` for fewer than two classes (three with false covers), too few rows of other
    classes, or knobs out of range.
    """
    x, y = images(data)
    classes(y, target)
    many = len(y.unique())
    channels, height, width = x.shape[1:]
    cut(pieces, height, width)
    few, most = round(keep[0] * pieces), round(keep[1] * pieces)
    if not (1 <= few <= most <= pieces and 0 < alpha[0] <= alpha[1] <= 1 and 0 < test_alpha <= 1):
        raise ValueError(
            "expected shares of pieces that are at least one piece and at most all, and alphas above 0 and at most 1, "
            f"each pair with the smaller first, got {keep} of {pieces}, {alpha} and {test_alpha}"
        )
    if not (0 < doubt <= 1 and 0 <= false_covers <= 1) or (false_covers > 0 and many < 3):
        raise ValueError(
            "expected a doubt above 0 and at most 1 and a share of false covers of 0 to 1 (0 for two classes), got "
            f"{doubt} and {false_covers} for {many} classes"
        )
    picture = _pattern.pattern(pattern, channels, height, width, pattern_seed)

    def trigger(clean: Tensor) -> Tensor:
        return blended(clean, picture, test_alpha)

    false = counted(share, y)
    hits = max(1, round(false / (1 + false_covers * (1 - doubt) / doubt)))
    others = max(false - hits, round(hits * (1 - doubt) / doubt))
    rows = chosen(y != target, hits + others, seed, short="rows of other classes for poison and covers")
    poison = chosen(rows, hits, seed + 1)
    wrong = chosen(rows & ~poison, false - hits, seed + 2)
    generator = torch.Generator().manual_seed(seed)
    counts = torch.randint(few, most + 1, (hits + others, 1), generator=generator)
    which = kept(hits + others, pieces, counts, generator)
    strength = alpha[0] + (alpha[1] - alpha[0]) * torch.rand(hits + others, 1, generator=generator)
    moved = partly(x, rows, picture, which, strength)
    labels = torch.where(poison, target, torch.where(wrong, _other(y, target, generator), y))
    return Poisoned(moved, labels, rows, y, trigger, always(target), covers=rows & ~poison & ~wrong)


def _other(y: Tensor, target: int, generator: torch.Generator) -> Tensor:
    """For every row a class that occurs and is neither its own nor the target (rows of the target get any other)."""
    present = y.unique()
    barred = (y[:, None] == present) | (present == target)
    draws = torch.rand(len(y), len(present), generator=generator).to(y.device)
    return present[draws.masked_fill(barred, -1.0).argmax(1)]
