"""What an independent model calls rebuilt inputs."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from buckler.data import Rows
from buckler.privacy._farm import Lesson, learnt
from buckler.privacy._game import training_of
from buckler.privacy._setting import Setting
from buckler.target import frozen

APART = 7919
"""Added to the seed of what has to begin at other weights than the subject's model: alike ones are fooled alike."""


def onlooker(setting: Setting, others: Rows) -> Callable[[Tensor], Tensor] | None:
    """What a model that learnt from `others` calls inputs `(B, ...)`; None where nothing can be trained."""
    net = setting.subject.net
    training = (
        Lesson(net, setting.training_epochs)
        if net is not None
        else training_of(setting.subject, setting.training_epochs)
    )
    if training is None:
        return None
    seed = setting.seed + APART
    model = learnt(training, others, seed=seed, start=seed, device=setting.device)

    def called(x: Tensor) -> Tensor:
        with torch.no_grad(), frozen(model):
            return model(x.to(setting.device)).argmax(1)

    return called
