"""Top k: only the scores of the classes that lead are shown.

Tramer, Zhang, Juels, Reiter and Ristenpart, "Stealing machine learning models via prediction APIs", USENIX Security
2016, https://arxiv.org/abs/1609.02943, section 7.

Differs from the paper: what the classes that are not shown have together is spread over them evenly, which is what a
thief would take them for.

No guarantee: labels are as they were, and a thief who learns from labels loses nothing.

Tags: atlas:AML.M0002, nist-ai-100-2:NISTAML.031, owasp-ml:ML05.
"""

from __future__ import annotations

from functools import partial

from torch import Tensor, nn

from buckler.kinds import Defended
from buckler.theft._answering import Answering, first_kept


def top_k(model: nn.Module, *, k: int = 1) -> Defended:
    """`model` with the scores of its `k` leading classes; labels are as they were. A `ValueError` for none."""
    if k < 1:
        raise ValueError(f"expected at least 1 class shown, got {k}")
    return Answering(model, partial(_leading, k=k))


def _leading(scores: Tensor, k: int) -> Tensor:
    many = scores.shape[1]
    if k >= many:
        return scores
    shown = scores.topk(k, dim=1)
    rest = (1 - shown.values.sum(1, keepdim=True)).clamp_min(0) / (many - k)
    return first_kept(rest.expand_as(scores).scatter(1, shown.indices, shown.values), scores)
