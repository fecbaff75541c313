"""Top features: of every image only the largest features are shown, the others are 0.

Liu, Jia, Liu and Gong, "StolenEncoder: stealing pre-trained encoders in self-supervised learning", CCS 2022,
https://arxiv.org/abs/2201.05889, where it is tried as a defence and found wanting.

Differs from the paper: large is what is far from 0, whichever way.

No guarantee: a thief who compares only what is shown learns the rest from other images.

Tags: atlas:AML.M0002, nist-ai-100-2:NISTAML.031, owasp-ml:ML05.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn

from buckler.encoders._revealing import Revealing
from buckler.kinds import Defended


def top_features(model: nn.Module, *, kept: float = 0.1) -> Defended:
    """The encoder `model` with the share `kept` of each row's features that are largest, one at the least; else 0.

    A `ValueError` for a share that is not above 0 and at most 1.
    """
    if not 0 < kept <= 1:
        raise ValueError(f"expected a share above 0 and at most 1 to keep, got {kept}")
    return Revealing(model, partial(_largest, kept=kept))


def _largest(features: Tensor, _: Tensor, kept: float) -> Tensor:
    many = max(1, round(kept * features.shape[1]))
    which = features.abs().topk(many, dim=1).indices
    return torch.zeros_like(features).scatter(1, which, features.gather(1, which))
