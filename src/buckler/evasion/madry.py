"""Adversarial training by projected gradient descent.

Madry, Makelov, Schmidt, Tsipras and Vladu, "Towards deep learning models resistant to adversarial attacks", ICLR 2018,
https://arxiv.org/abs/1706.06083.

The inner search runs in evaluation mode: batch norm by its running statistics, which it leaves alone, and no dropout,
as in the authors' library `robustness`; the one forward pass that is trained on is in the mode the model came in.
Differs from the paper: the step is given in radii and is 2.5 / steps by default, so that every point of the ball is
within reach (the paper's 2/255 at radius 8/255 is 0.25, the default at 10 steps; it trained with 7 on CIFAR-10). The
random start is drawn from the global generator, afresh at every call.

No guarantee.

Tags: atlas:AML.M0003, nist-ai-100-2:NISTAML.022, owasp-ml:ML01, cwe:1039.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from buckler.evasion._inner import climb, start, trainable
from buckler.kinds import Losses
from buckler.threat import Ball


def madry(model: nn.Module, x: Tensor, y: Tensor, *, ball: Ball, steps: int = 10, step: float | None = None) -> Losses:
    """The cross-entropy of every row at the worst point that projected gradient ascent finds around it.

    `x` `(B, ...)` in [0, 1], `y` `(B,)`; `ball` linf or l2 with a finite radius (a `ValueError` otherwise). `step` is
    in radii. Returns `(B,)`, differentiable in the parameters.
    """

    def loss(logits: Tensor) -> Tensor:
        return F.cross_entropy(logits, y, reduction="none")

    length = 2.5 / max(steps, 1) if step is None else step
    moved = climb(model, x, start(x, trainable(ball)), loss, ball=ball, steps=steps, step=length)
    return loss(model(moved))
