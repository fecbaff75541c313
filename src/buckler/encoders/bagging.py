"""Bagging: encoders learn from disjoint parts of the rows, and what is learnt above them votes.

Levine and Feizi, "Deep partition aggregation: provable defenses against general poisoning attacks", ICLR 2021,
https://arxiv.org/abs/2006.14768; as a defence of pre-training: Liu, Jia and Gong, "PoisonedEncoder: poisoning the
unlabeled pre-training data in contrastive learning", USENIX Security 2022, https://arxiv.org/abs/2205.06401.

Guaranteed: a row's part is decided by a hash of its own content, and an encoder by its own part, down to the order of
rows and the number of steps. So a row that is added or removed reaches one encoder, a row that is changed up to two
(it leaves a part and enters one), and another order of rows none. Where each voter has an encoder of its own, and all
else that it learns from is to be trusted, such as the labelled rows of a probe, `embedding.elected` says of each input
how many voters may turn before the vote does. This is of the answer to one input; an input with a trigger is another.
It is of integrity: rows that make the training of a part fail stop all of it. The hash is public, and need not be
secret: whoever aims many rows at one part turns one voter.

Differs from the papers: Levine and Feizi's classifiers learn from labels that the adversary may touch, here only
pre-training is poisoned. Jia, Cao and Gong, "Intrinsic certified robustness of bagging against data poisoning attacks",
AAAI 2021, https://arxiv.org/abs/2008.04495, draw the rows of each voter with replacement, so that one row may reach
several, and what they certify, the vote over all draws, is known with high probability. With parts nothing is drawn,
and the certificate always holds; it is of exactly these voters.

Tags: atlas:AML.M0006, nist-ai-100-2:NISTAML.024, owasp-ml:ML02.
"""

from __future__ import annotations

from collections.abc import Callable
from hashlib import sha256

import torch
from torch import nn

from buckler.data import Rows
from buckler.encoders._scene import epochs_of
from buckler.encoders.simclr import simclr
from buckler.kinds import Bagged, Encoder
from buckler.train import started


def bagging(
    data: Rows,
    *,
    net: Callable[[], nn.Module],
    by: Callable[..., Encoder] = simclr,
    parts: int = 10,
    steps: int = 50,
    seed: int = 0,
) -> Bagged:
    """Deal out the rows of `data` `(N, ...)` to `parts`, and pre-train an encoder `net()` on each for so many `steps`.

    `by` is the pre-training; what draws an encoder is `seed` and the number of its part. One that got fewer than two
    rows stays untrained. Returns the encoders, evaluating, and the part of each row `(N,)`. A `ValueError` for fewer
    parts than one, or more than leave two rows to each.
    """
    x, y = data
    if not 1 <= parts <= len(y) // 2:
        raise ValueError(f"expected 1 to {len(y) // 2} parts, so that each of {len(y)} rows has another, got {parts}")
    content = [sha256(row.tobytes()).digest() for row in x.cpu().contiguous().numpy()]
    part = torch.tensor([int.from_bytes(known, "big") % parts for known in content])
    order = torch.tensor(sorted(range(len(y)), key=lambda row: (content[row], int(y[row]))))
    encoders = list[nn.Module]()
    for one in range(parts):
        own = order[part[order] == one].to(x.device)
        if len(own) < 2:
            encoders.append(started(net, seed + one).eval())
        else:
            epochs = epochs_of(by, steps, len(own))
            encoders.append(by((x[own], y[own]), net=net, epochs=epochs, seed=seed + one))
    return Bagged(tuple(encoders), part)
