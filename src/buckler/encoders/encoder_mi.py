"""EncoderMI: the views of an image that an encoder learnt from are more alike than those of another.

Liu, Jia, Qu and Gong, "EncoderMI: membership inference against pre-trained encoders in contrastive learning",
CCS 2021, https://arxiv.org/abs/2108.11023.

The encoder is asked about several views of every image, and what is looked at are the cosines of all pairs. Which of
them a member has is learnt from the adversary's own encoders: as a sorted vector, by a network; as a set, by a network
that does not know their order (Zaheer et al., "Deep sets", NIPS 2017); or by a threshold of their mean. What the
adversary does not know of the encoder's making (the kind of rows, the network, the algorithm: eight settings) is
something else in the making of its own.

Differs from the paper: by default every cosine is taken less how alike the two views are to views of other images, as
the loss that the encoder learnt by has it (`contrasted=False` is the paper's), and beyond what encoders that did not
learn from the image show of the very same views (`calibrated=False` is the paper's): both are meant to take off what
makes an image easy for any encoder. Views are milder than those of pre-training, and there are several small shadow
encoders in the place of one.

Tags: atlas:AML.T0024.000, nist-ai-100-2:NISTAML.033, owasp-ml:ML04.
"""

from __future__ import annotations

from functools import partial
from typing import Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from buckler.encoders._shadowed import Known, Shadowing, alike, readings
from buckler.kinds import Membership
from buckler.target import FeatureOracle
from buckler.train import fit, started

OTHERS = 100
"""Other images, at most, that views are compared with."""


def encoder_mi(
    oracle: FeatureOracle,
    x: Tensor,
    *,
    shadows: Shadowing,
    classifier: Literal["vector", "set", "threshold"] = "threshold",
    contrasted: bool = True,
    calibrated: bool = True,
    asked: int = 10,
    least: float = 0.5,
    rows_known: bool = True,
    net_known: bool = True,
    algorithm_known: bool = True,
    seed: int = 0,
) -> Membership:
    """Score the rows `x` `(B, C, H, W)`, uint8 or in [0, 1]: above 0 for what is taken for a member, `(B,)`.

    `asked` views of every row, crops of at least the share `least`, are shown to the `oracle`; `shadows` makes the
    adversary's encoders with what is known of the rows, the network and the algorithm. Raises `ValueError` for fewer
    than two views, what are no images, and features that are no finite matrix.
    """
    made = shadows(Known(rows_known, net_known, algorithm_known))
    others = made.unseen[:OTHERS] if contrasted else None
    read = partial(alike, asked=asked, least=least, seed=seed, others=others)
    target, lessons, member = readings(read, oracle, x, made, calibrated=calibrated)
    if classifier == "threshold":
        return target.mean(1) - _threshold(lessons.mean(1), member)
    centre, spread = lessons.mean(), lessons.std().clamp_min(1e-6)
    target, lessons = ((some.sort(1).values - centre) / spread for some in (target, lessons))
    learner = _OfVector if classifier == "vector" else _OfSet
    model = started(lambda: learner(target.shape[1]), seed)
    fit(model, (lessons, member.float()), loss=_told, epochs=60, batch=64, rate=1e-3, optimizer="adam", seed=seed)
    with torch.no_grad():
        return model(target)


def _threshold(score: Tensor, member: Tensor) -> float:
    """What divides members `(N,)` from the others best, by their `score` `(N,)`: halfway between two of them."""
    score, order = score.sort()
    right = torch.cumsum(torch.where(member[order], -1 / member.sum(), 1 / (~member).sum()), 0)
    best = int(right.argmax())
    return float(score[best : best + 2].mean())


class _OfVector(nn.Module):
    def __init__(self, many: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(many, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Dropout(), nn.Linear(256, 1)
        )

    def forward(self, found: Tensor) -> Tensor:
        return self.layers(found).squeeze(1)


class _OfSet(nn.Module):
    def __init__(self, _many: int) -> None:
        super().__init__()
        self.each = nn.Sequential(nn.Linear(1, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU())
        self.all = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 1))

    def forward(self, found: Tensor) -> Tensor:
        return self.all(self.each(found[:, :, None]).mean(1)).squeeze(1)


def _told(model: nn.Module, found: Tensor, member: Tensor) -> Tensor:
    return F.binary_cross_entropy_with_logits(cast(Tensor, model(found)), member, reduction="none")
