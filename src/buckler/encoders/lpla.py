"""LpLA: how long the features of an image are, in an l_p norm, tells whether an encoder learnt from it.

Sun, Hu, Luo, Zhang, Zhang, Yuan and Zhang, "When better features mean greater risks: the performance-privacy trade-off
in contrastive learning", 2025, https://arxiv.org/abs/2506.05743.

A normal distribution is fitted to the norms of members of the adversary's own encoders, and one to those of other rows;
the score is the logarithm of how much likelier the first is.

Differs from the paper, of which the idea is taken, as its abstract has it: logarithms of norms, so that encoders of
another scale are comparable; by default beyond what encoders that did not learn from the image have, as in
`encoders/encoder_mi`.

Tags: atlas:AML.T0024.000, nist-ai-100-2:NISTAML.033, owasp-ml:ML04.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn
from torch.distributions import Normal

from buckler.embedding import embedded
from buckler.encoders._shadowed import Known, Shadowing, readings
from buckler.kinds import Membership
from buckler.target import FeatureOracle, Oracle


def lpla(
    oracle: FeatureOracle,
    x: Tensor,
    *,
    shadows: Shadowing,
    p: float = 2.0,
    calibrated: bool = True,
    rows_known: bool = True,
    net_known: bool = True,
    algorithm_known: bool = True,
) -> Membership:
    """Score the rows `x` `(B, C, H, W)`, uint8 or in [0, 1], by one question each: above 0 for a member, `(B,)`.

    Norms are of order `p`; `shadows` makes the adversary's encoders with what is known of the rows, the network and the
    algorithm. Raises `ValueError` for an order of 0 or less, and features that are no finite matrix.
    """
    if p <= 0:
        raise ValueError(f"expected a norm of an order above 0, got {p:g}")
    made = shadows(Known(rows_known, net_known, algorithm_known))
    target, lessons, member = readings(partial(_long, p=p), oracle, x, made, calibrated=calibrated)
    inside, outside = (Normal(some.mean(), some.std().clamp_min(1e-6)) for some in (lessons[member], lessons[~member]))
    return (inside.log_prob(target) - outside.log_prob(target)).squeeze(1)


def _long(encoder: nn.Module | Oracle, x: Tensor, *, p: float) -> Tensor:
    found = embedded(encoder, x).norm(p=p, dim=1, keepdim=True)
    return found.clamp_min(torch.finfo(found.dtype).tiny).log()
