"""Continued pre-training: the encoder goes on learning by SimCLR, from clean images, and is to forget a backdoor.

Liu, Xie and Srivastava, "Neural trojans", ICCD 2017, https://arxiv.org/abs/1710.00942, for classifiers; the usual
control of every other repair.

Differs from the paper: there are no labels, so what the encoder goes on with is pre-training, by Chen, Kornblith,
Norouzi and Hinton, ICML 2020, https://arxiv.org/abs/2002.05709. No guarantee: what clean images do not exercise is not
changed.

Tags: atlas:AML.T0018.000, nist-ai-100-2:NISTAML.023, cwe:506.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from buckler.encoders.simclr import simclr
from buckler.kinds import Repaired


def continued_pretraining(
    encoder: nn.Module,
    x: Tensor,
    *,
    least: float = 0.2,
    epochs: float = 60,
    batch: int = 128,
    rate: float = 0.1,
    decay: float = 5e-4,
    seed: int = 0,
) -> Repaired:
    """Pre-train a copy of `encoder` further on clean images `x` `(N, C, H, W)`, uint8 or in [0, 1], without labels.

    Views are crops of at least the share `least`; the head above the copy begins anew. Returns the copy, evaluating. A
    `ValueError` for what is no image, and for an encoder that gives no matrix.
    """
    unlabelled = x, torch.zeros(len(x), dtype=torch.long)
    return simclr(
        unlabelled,
        net=lambda: copy.deepcopy(encoder).requires_grad_(),
        least=least,
        epochs=epochs,
        batch=batch,
        rate=rate,
        decay=decay,
        seed=seed,
    )
