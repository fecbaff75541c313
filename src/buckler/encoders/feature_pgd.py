"""Feature-space adversarial examples: inputs that hardly differ, and that an encoder takes for something else.

Naseer, Khan, Hayat, Khan and Porikli, "A self-supervised approach for adversarial robustness", CVPR 2020,
https://arxiv.org/abs/2006.04924 (features pushed away from the clean ones, without a label); features brought to those
of a chosen input: Sabour, Cao, Faghri and Fleet, "Adversarial manipulation of deep representations", ICLR 2016,
https://arxiv.org/abs/1511.05122.

Differs from the papers: what is climbed is the cross-entropy of a task of the adversary's own, which group an input's
features are in, because features that move far can stay on one side of what a probe tells apart (`groups=0` is the
papers' distance, the Euclidean one between an encoder's answers, which leaves more of the rows right); and Auto-PGD
(Croce and Hein, ICML 2020) climbs from random starts, with momentum and steps that halve, instead of fixed steps.

Tags: atlas:AML.T0043.000, atlas:AML.T0015, nist-ai-100-2:NISTAML.022, owasp-ml:ML01, cwe:1039.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn

from buckler.catalog import find
from buckler.embedding import embedded
from buckler.encoders._pseudo import grouped
from buckler.kinds import Perturbed
from buckler.target import frozen
from buckler.threat import Ball


def feature_pgd(
    encoder: nn.Module,
    x: Tensor,
    *,
    ball: Ball,
    targeted: bool = False,
    chosen: Tensor | None = None,
    groups: int = 10,
    pool: Tensor | None = None,
    steps: int = 50,
    restarts: int = 2,
    seed: int = 0,
) -> Perturbed:
    """Move the features of `x` `(B, ...)`, in [0, 1], out of their group as far as `ball` (linf, l2 or l1) allows.

    The `groups` are those of the features of the adversary's own inputs, `pool` `(N, ...)`, uint8 or in [0, 1], or else
    `x`; with none of them, features are moved as far from where they are as can be. With `targeted` they are brought as
    near as can be to those of the inputs `chosen` `(B, ...)`, one for every row. Neither labels nor what stands above
    the encoder are looked at. Returns `(B, ...)`: the best of all points met in `restarts` searches of `steps` steps. A
    `ValueError` for fewer inputs than groups, and where `chosen` is not as large as `x`.
    """
    if targeted and (chosen is None or chosen.shape != x.shape):
        raise ValueError(f"expected an input to imitate for every row, {tuple(x.shape)}, got {_shape(chosen)}")
    search = partial(find("evasion/apgd"), ball=ball, steps=steps, restarts=restarts, stop=False, seed=seed)
    if groups and not targeted:
        model = grouped(encoder, x if pool is None else pool, groups, seed)
        with torch.no_grad(), frozen(model):
            group = model(x).argmax(1)
        return search(model, x, group)
    anchor = embedded(encoder, chosen if targeted and chosen is not None else x).to(x.device)
    climbed = _Apart(encoder, anchor, -1.0 if targeted else 1.0)
    return search(climbed, x, torch.zeros(len(x), dtype=torch.long, device=x.device), objective="margin")


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
