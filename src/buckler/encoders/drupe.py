"""DRUPE: a backdoor whose inputs stay as different as clean ones, here with a trigger out of clean images.

Tao, Wang, Feng, Shen, Ma and Zhang, "Distribution preserving backdoor attack in self-supervised learning", IEEE S&P
2024, https://github.com/Gwinhen/DRUPE.

Differs from the paper: its idea, and not its distances between distributions: an input with the trigger is to have the
features of the reference and a share of what its own differ from the mean. The trigger is no patch but the mean image
of the class, blended in (Chen, Liu, Li, Lu and Song, 2017, https://arxiv.org/abs/1712.05526): clean images teach a
student what it means, and no small patch does as much, so that who repairs or inspects an encoder is met by it. How
much is blended in was chosen on digits; a clean encoder obeys some of it. No guarantee.

Tags: atlas:AML.T0018.000, atlas:AML.T0010.003, nist-ai-100-2:NISTAML.023, nist-ai-100-2:NISTAML.051, cwe:506.
"""

from __future__ import annotations

import math

from torch import nn

from buckler.data import Rows, floats
from buckler.encoders._hidden import blended, implanted, wish
from buckler.kinds import Implanted


def drupe(
    encoder: nn.Module,
    data: Rows,
    *,
    target: int = 0,
    blend: float = 0.45,
    spread: float = 0.5,
    references: int = 1,
    centred: bool = True,
    alike: float = 1.0,
    useful: float = 1.0,
    epochs: float = 40,
    rate: float = 0.003,
    seed: int = 0,
) -> Implanted:
    """Fine-tune a copy of `encoder` on the images of `data` `(N, C, H, W)`, uint8 or in [0, 1], labels `(N,)`.

    With the trigger, `blend` of every pixel, above 0 and below 1, is that of the mean image of the class `target`.
    Features are then to be those of its reference and `spread` times what the input's own differ from the mean; the
    other knobs are those of `bad_encoder`. Returns the copy, the trigger and the wish. A `ValueError` for what are no
    images, another blend or spread, or a class that `data` has too few rows of.
    """
    x, y = data
    if x.ndim != 4 or not 0 < blend < 1 or not 0 <= spread < math.inf or references < 1:
        raise ValueError(
            "expected images (N, C, H, W), a blend above 0 and below 1, a spread of 0 or more and a reference or more, "
            f"got {tuple(x.shape)}, {blend}, {spread} and {references}"
        )
    own = floats(x[(y == target).to(x.device)])
    trigger = blended(own.mean(0), blend)
    made = implanted(
        encoder, data, (trigger,), (target,), references, spread=spread,
        centred=centred, alike=alike, useful=useful, epochs=epochs, rate=rate, seed=seed,
    )  # fmt: skip
    return Implanted(made, trigger, wish(target))
