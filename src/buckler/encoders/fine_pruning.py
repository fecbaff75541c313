"""Fine-pruning of an encoder: channels that sleep on clean images are removed, and what is left learns on by SimCLR.

Liu, Dolan-Gavitt and Garg, "Fine-pruning: defending against backdooring attacks on deep neural networks", RAID 2018,
https://arxiv.org/abs/1805.12185.

Differs from the paper: there are no labels, so what bounds the pruning is how alike the features of clean images stay,
and what follows is pre-training (Chen, Kornblith, Norouzi and Hinton, ICML 2020, https://arxiv.org/abs/2002.05709).
Channels of all feature maps are ranked together, by how active they are beside their map's mean: pruning the last map
alone, as for classifiers, leaves the backdoor of an encoder whole. Channels stay removed. No guarantee: pruning alone
does next to nothing, what follows hardly more than it does without (`continued_pretraining`), and a backdoor that uses
channels that clean images use too survives both.

Tags: atlas:AML.T0018.000, nist-ai-100-2:NISTAML.023, cwe:506.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from buckler.encoders._asleep import asleep
from buckler.encoders.simclr import simclr
from buckler.graph import silenced
from buckler.kinds import Repaired


def fine_pruning(
    encoder: nn.Module,
    x: Tensor,
    *,
    alike: float = 0.6,
    least: float = 0.2,
    epochs: float = 60,
    batch: int = 128,
    rate: float = 0.1,
    decay: float = 5e-4,
    seed: int = 0,
) -> Repaired:
    """Prune a copy of `encoder`, and pre-train it further, on clean images `x` `(N, C, H, W)`, uint8 or in [0, 1].

    As many channels go as leave the features, around their mean, a mean cosine of `alike`, above -1 and at most 1, to
    those before. The rest is as in `continued_pretraining`. Returns the copy, evaluating. A `ValueError` for what is no
    image, for an encoder that gives no matrix, that `torch.fx` cannot trace, or without convolutions, and for another
    `alike`.
    """
    pruned = copy.deepcopy(encoder).eval().requires_grad_()
    with silenced(*asleep(pruned, x, alike)):
        return simclr(
            (x, torch.zeros(len(x), dtype=torch.long)),
            net=lambda: pruned,
            least=least,
            epochs=epochs,
            batch=batch,
            rate=rate,
            decay=decay,
            seed=seed,
        )
