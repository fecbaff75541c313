"""STRIP: a trigger keeps its label under whatever is laid over it, so the answers to blends hardly vary.

Gao, Xu, Wang, Chen, Ranasinghe and Nepal, "STRIP: a defence against trojan attacks on deep neural networks", ACSAC
2019, https://arxiv.org/abs/1902.06531.

Differs from the paper: it cleanses training rows without clean ones, so the overlays are rows of the data, and the
normal distribution whose lower tail is flagged is fitted by median and median absolute deviation, which a minority of
poisoned rows does not move. The overlays are the same for every row. No guarantee: triggers that are blended away,
that move pixels, or that depend on the image are missed.

Tags: atlas:AML.T0020, nist-ai-100-2:NISTAML.023, owasp-ml:ML02, cwe:506.
"""

from __future__ import annotations

from statistics import NormalDist

import torch
from torch import Tensor, nn

from buckler.data import Rows, batches, raw
from buckler.kinds import Suspicion
from buckler.poisoning._groups import ordered
from buckler.poisoning._look import where
from buckler.poisoning._touch import classes
from buckler.target import frozen

BLENDS = 2048
"""How many blends the model is asked about at once."""


def strip(
    model: nn.Module, data: Rows, *, overlays: int = 64, weight: float = 1.0, alarms: float = 0.01, seed: int = 0
) -> Suspicion:
    """Score the rows of `data`, on which `model` was trained, by how sure the model stays when others are laid over
    them.

    `data` is `x` `(N, ...)` and `y` `(N,)`. Every row has `weight` times each of `overlays` rows of the data added to
    it, clipped to [0, 1]; the score is minus the mean entropy of the answers, in nats. Flagged are the rows whose
    entropy is in the lower tail, of probability `alarms`, of the normal distribution fitted to all. Raises `ValueError`
    for one class only, fewer rows than overlays, or `alarms` not between 0 and 1/2.
    """
    x, y = raw(data)
    classes(y)
    if not 1 <= overlays <= len(y):
        raise ValueError(f"expected 1 to {len(y)} overlays, as many as there are rows at most, got {overlays}")
    if not 0 < alarms < 0.5:
        raise ValueError(f"expected a share of false alarms between 0 and 0.5, got {alarms}")
    picked = ordered(x, y, seed)[(2 * torch.arange(overlays) + 1) * len(y) // (2 * overlays)]
    others = weight * next(batches((x, y), overlays, picked))[0].to(where(model))
    parts: list[Tensor] = []
    with torch.no_grad(), frozen(model):
        for part, _ in batches((x, y), max(1, BLENDS // overlays)):
            blends = (part.to(others)[:, None] + others[None]).clamp_(0, 1)
            said = model(blends.flatten(0, 1)).double().log_softmax(1)
            parts.append(-(said.exp() * said).sum(1).view(len(part), overlays).mean(1).cpu())
    entropy = torch.cat(parts)
    middle = entropy.quantile(0.5)
    spread = 1.4826 * (entropy - middle).abs().quantile(0.5)
    return Suspicion(-entropy.float(), entropy < middle + NormalDist().inv_cdf(alarms) * spread)
