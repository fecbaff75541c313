"""The modified entropy of answers, which two attacks look at."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def modified_entropy(log: Tensor, y: Tensor) -> Tensor:
    """-(1 - p_y) log p_y less the sum of p_k log(1 - p_k) over the other classes, of log-probabilities `(B, K)`.

    log(1 - p) is summed from the other classes, which is exact where p is nearly 1.
    """
    own = F.one_hot(y, log.shape[1]).bool()
    rest = torch.stack([log[:, torch.arange(log.shape[1]) != k].logsumexp(1) for k in range(log.shape[1])], 1)
    return -torch.where(own, rest.exp() * log, log.exp() * rest).sum(1)
