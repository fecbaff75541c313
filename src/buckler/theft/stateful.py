"""Blacklight: questions that share many windows of pixels with an earlier one are an attack that feels its way.

Li, Shan, Wenger, Zhang, Zheng and Zhao, "Blacklight: scalable defense for neural networks against query-based black-box
attacks", USENIX Security 2022, https://arxiv.org/abs/2006.14042.

Differs from the paper: windows are hashed by a keyed multilinear function, whose collisions are as rare as matter here,
and not by salted SHA-256, which is what a service should use that keeps hashes out of an adversary's reach. Matches are
looked for among the questions of one client; a store for all clients sees attacks from several accounts too, and takes
any two clients who send the same input for one.

No guarantee. An input that is sent again, or a picture of a scene that hardly moves, matches like an attack does.
Questions that are moved far enough for their windows to change are not seen: Feng, Hooda, Mangaokar, Fawaz, Jha and
Prakash, "Stateful defenses for machine learning models are not yet secure against black-box attacks", CCS 2023,
https://arxiv.org/abs/2303.06280.

Tags: atlas:AML.M0004, atlas:AML.M0015, atlas:AML.T0043.001, nist-ai-100-2:NISTAML.025, owasp-ml:ML01, owasp-ml:ML05.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from buckler.claims import secret
from buckler.data import Rows, floats
from buckler.kinds import Watched
from buckler.theft._traffic import Unsuited

NONE = torch.iinfo(torch.int64).min
"""What stands where an input has fewer different windows than are kept."""


def stateful(
    queries: Rows,
    *,
    threshold: int = 25,
    keep: int = 50,
    window: int = 20,
    stride: int = 1,
    coarse: int = 50,
    seed: int = 0,
) -> Watched:
    """How many of a question's fingerprints the most alike of all earlier questions has.

    `queries` are what one client asked, in order: `x` `(N, ...)`, float in [0, 1] or uint8, and labels `(N,)`, which
    are not looked at. Pixels are rounded to multiples of `coarse` 255ths; fingerprints are the `keep` highest of the
    different hashes of `window` pixels in a row, every `stride` pixels, by a secret that `seed` draws. The client is
    flagged from the first question on that shares more than `threshold`; `score` `(N,)` is how many it shares. A
    `ValueError` for numbers out of range, and for inputs too small to share so many.
    """
    x = floats(queries[0]).flatten(1)
    if min(window, stride) < 1 or not 0 < coarse <= 255 or not 0 <= threshold < keep:
        raise ValueError(
            "expected window and stride of 1 or more, coarse in 1 to 255, a threshold of 0 or more and keep above it, "
            f"got {window}, {stride}, {coarse}, {threshold} and {keep}"
        )
    windows = max(0, 1 + (x.shape[1] - window) // stride)
    if windows <= threshold:
        raise Unsuited(
            f"expected inputs with more than {threshold} windows of {window} pixels, got {windows} in {x.shape[1]} "
            "pixels: take a lower threshold or a smaller window"
        )
    prints = _prints((x * 255 / coarse).round().long(), keep, window, stride, seed)
    known, name = prints.unique(return_inverse=True)
    score, mine, none = (
        torch.zeros(len(x), dtype=torch.double),
        torch.zeros_like(known, dtype=torch.bool),
        known != NONE,
    )
    for index in range(1, len(x)):
        mine[name[index]] = none[name[index]]
        score[index] = float(mine[name[:index]].sum(1).max())
        mine[name[index]] = False
    return Watched((score > threshold).cummax(0).values if len(x) else score > 0, score)


def _prints(pixels: Tensor, keep: int, window: int, stride: int, seed: int) -> Tensor:
    """The highest hashes of the windows of rows `(N, D)`, each once: `(N, at most keep)`."""
    key = torch.randint(NONE, -NONE - 1, (window + 1,), generator=secret(seed, "stateful")).tolist()
    parts = pixels.unfold(1, window, stride).unbind(2)
    hashes = key[-1] + sum((salt * part for salt, part in zip(key, parts, strict=False)), torch.zeros_like(parts[0]))
    hashes = hashes.sort(1, descending=True).values
    hashes = hashes.masked_fill(F.pad(hashes[:, 1:] == hashes[:, :-1], (1, 0)), NONE)
    return hashes.topk(min(keep, hashes.shape[1]), dim=1).values
