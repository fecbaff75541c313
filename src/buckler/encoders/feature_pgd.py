"""Feature-space adversarial examples: inputs that hardly differ, and that an encoder takes for something else.

Naseer, Khan, Hayat, Khan and Porikli, "A self-supervised approach for adversarial robustness", CVPR 2020,
https://arxiv.org/abs/2006.04924 (features pushed away from the clean ones, without a label); features brought to those
of a chosen input: Sabour, Cao, Faghri and Fleet, "Adversarial manipulation of deep representations", ICLR 2016,
https://arxiv.org/abs/1511.05122.

Differs from the papers: the distance is the Euclidean one between an encoder's answers, and Auto-PGD (Croce and Hein,
ICML 2020) climbs it from random starts, with momentum and steps that halve, instead of fixed steps or L-BFGS.

Tags: atlas:AML.T0043.000, atlas:AML.T0015, nist-ai-100-2:NISTAML.022, owasp-ml:ML01, cwe:1039.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from buckler.catalog import find
from buckler.embedding import embedded
from buckler.kinds import Perturbed
from buckler.threat import Ball


def feature_pgd(
    encoder: nn.Module,
    x: Tensor,
    *,
    ball: Ball,
    targeted: bool = False,
    chosen: Tensor | None = None,
    steps: int = 50,
    restarts: int = 2,
    seed: int = 0,
) -> Perturbed:
    """Move the features of `x` `(B, ...)`, in [0, 1], as far from where they are as `ball` (linf, l2 or l1) allows.

    With `targeted` they are brought as near as can be to those of the inputs `chosen` `(B, ...)`, one for every row (a
    `ValueError` without them). Neither labels nor what stands above the encoder are looked at. Returns `(B, ...)`: the
    best of all points met in `restarts` searches of `steps` steps.
    """
    if targeted and (chosen is None or chosen.shape != x.shape):
        raise ValueError(f"expected an input to imitate for every row, {tuple(x.shape)}, got {_shape(chosen)}")
    anchor = embedded(encoder, chosen if targeted and chosen is not None else x).to(x.device)
    climbed = _Apart(encoder, anchor, -1.0 if targeted else 1.0)
    none = torch.zeros(len(x), dtype=torch.long, device=x.device)
    return find("evasion/apgd")(
        climbed, x, none, ball=ball, steps=steps, restarts=restarts, objective="margin", stop=False, seed=seed
    )


class _Apart(nn.Module):
    """Two scores for each row: none, and how far its features are from its `anchor`, by `sign`. What an attack on the
    margin of the first climbs is the distance."""

    def __init__(self, encoder: nn.Module, anchor: Tensor, sign: float) -> None:
        super().__init__()
        self.encoder, self.anchor, self.sign = encoder, anchor, sign

    def forward(self, x: Tensor) -> Tensor:
        far = self.sign * (self.encoder(x) - self.anchor).square().sum(1)
        return torch.stack([torch.zeros_like(far), far], 1)


def _shape(x: Tensor | None) -> str:
    return "none" if x is None else str(tuple(x.shape))
