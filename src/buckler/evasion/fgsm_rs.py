"""Adversarial training with one step from a random start ("fast is better than free").

Wong, Rice and Kolter, "Fast is better than free: revisiting adversarial training", ICLR 2020,
https://arxiv.org/abs/2001.03994.

The one gradient is taken in the mode the model came in, as in the reference implementation: in training mode, batch
norm normalises by the batch. Differs from it: what that extra forward pass writes into running statistics is undone, so
they only see the batch that is trained on. The l2 form (uniform start in the ball, normalised gradient) is not in the
paper. The random start is drawn from the global generator, afresh at every call.

No guarantee; at larger radii training can collapse into catastrophic overfitting (robust to one step, to nothing
else), which an evaluation by `pgd` during training shows.

Tags: atlas:AML.M0003, nist-ai-100-2:NISTAML.022, owasp-ml:ML01, cwe:1039.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from buckler.evasion._inner import buffers_kept, start, trainable, unit
from buckler.evasion._search import gradient
from buckler.kinds import Losses
from buckler.threat import Ball


def fgsm_rs(model: nn.Module, x: Tensor, y: Tensor, *, ball: Ball, step: float = 1.25) -> Losses:
    """The cross-entropy of every row after one gradient step of `step` radii from a random start in the ball.

    `x` `(B, ...)` in [0, 1], `y` `(B,)`; `ball` linf or l2 with a finite radius (a `ValueError` otherwise). Returns
    `(B,)`, differentiable in the parameters.
    """

    def loss(logits: Tensor) -> Tensor:
        return F.cross_entropy(logits, y, reduction="none")

    moved = start(x, trainable(ball))
    with buffers_kept(model):
        grad = gradient(model, moved, loss)[2]
    return loss(model(ball.clip(x, moved + step * ball.radii(x) * unit(grad, ball))))
