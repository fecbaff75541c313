"""Label flipping: false labels on true inputs, at random, from one class to another, or where they matter.

Random flips and flips at chosen rows: Biggio, Nelson and Laskov, "Support vector machines under adversarial label
noise", ACML 2011, https://proceedings.mlr.press/v20/biggio11.html; Xiao, Xiao and Eckert, "Adversarial label flips
attack on support vector machines", ECAI 2012, https://doi.org/10.3233/978-1-61499-098-7-870; Paudice, Munoz-Gonzalez
and Lupu, "Label sanitization against label flipping poisoning attacks", 2018, https://arxiv.org/abs/1803.00992. One
class to another: Tolpegin, Truex, Gursoy and Liu, "Data poisoning attacks against federated learning systems", ESORICS
2020, https://arxiv.org/abs/2007.08432.

Differs from the papers: they choose rows for the damage to a linear model or a support vector machine, in two classes,
and train it anew for every choice. Here one network is trained on the true labels, and the rows of the lowest loss,
whose false labels contradict it most (the first term of Xiao et al.'s objective), or of the highest loss, which hide
among rows that are hard anyway, are flipped in one go.

Tags: atlas:AML.T0020, atlas:AML.T0059, nist-ai-100-2:NISTAML.013, owasp-ml:ML02, cwe:345.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn

from buckler.data import Poisoned, Rows, raw
from buckler.poisoning._isolate import highest
from buckler.poisoning._look import losses
from buckler.poisoning._nudge import surrogate
from buckler.poisoning._touch import chosen, classes, counted
from buckler.threat import Share


def label_flip(
    data: Rows,
    *,
    share: Share,
    goal: Literal["random", "targeted"] = "random",
    source: int = 1,
    target: int = 0,
    first: Literal["any", "easiest", "hardest"] = "any",
    net: Callable[[], nn.Module] | None = None,
    epochs: float = 10,
    rate: float = 0.1,
    seed: int = 0,
) -> Poisoned:
    """Change the labels of a share of the rows, and nothing else.

    `data` is `x` `(N, ...)` and `y` `(N,)`. With the goal `random`, any row may get any other label that occurs, each
    as likely; with `targeted`, only rows of class `source` are flipped, to `target`. `share` of all rows are flipped:
    drawn by `seed`, or the `easiest` or `hardest` first, by their loss under a `net` trained on the true labels for
    `epochs` at `rate`. Returns `Poisoned` without trigger: the adversary wants the model to be wrong. Raises
    `ValueError` for one class, a source class that is the target or has too few rows, or an order by loss without
    `net`.
    """
    x, y = raw(data)
    many = counted(share, y)
    targeted = goal == "targeted"
    classes(y, target if targeted else None)
    if targeted and source == target:
        raise ValueError(f"expected a source class other than the target, got {source} for both")
    able = y == source if targeted else torch.ones_like(y, dtype=torch.bool)
    rows = chosen(able, many, seed, short=f"rows of class {source}" if targeted else "rows")
    if first != "any":
        if net is None:
            raise ValueError(f"expected a net to order the rows by, got none: give net, or first='any' not {first!r}")
        loss = losses(surrogate(net, (x, y), epochs=epochs, rate=rate, seed=seed), (x, y))
        rows = highest((loss if first == "hardest" else -loss).masked_fill(~able, -torch.inf), many)
    new = torch.full_like(y, target) if targeted else _others(y, seed)
    return Poisoned(x, torch.where(rows, new, y), rows, y)


def _others(y: Tensor, seed: int) -> Tensor:
    """For every row a label other than its own, out of those that occur, drawn by `seed` alone: `(N,)`."""
    present, position = y.unique(return_inverse=True)
    draws = torch.Generator().manual_seed(seed)
    return present[(position + torch.randint(1, len(present), y.shape, generator=draws)) % len(present)]
