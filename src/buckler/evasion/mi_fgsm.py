"""Momentum iterative fast gradient sign method, with the input and gradient transformations that make it transfer.

Dong, Liao, Pang, Su, Zhu, Hu and Li, "Boosting adversarial attacks with momentum", CVPR 2018,
https://arxiv.org/abs/1710.06081. Options: diverse inputs, DI (Xie et al., CVPR 2019, https://arxiv.org/abs/1803.06978);
translation invariance, TI (Dong et al., CVPR 2019, https://arxiv.org/abs/1904.02884); Nesterov look-ahead NI and scale
invariance SI (Lin et al., ICLR 2020, https://arxiv.org/abs/1908.06281).

Differs from the papers: the gradient is divided by its mean absolute value, not by the sum, which leaves the steps as
they are and gives Nesterov's look-ahead the length of a step. The momentum's decay is 1, as in all four papers, and the
step is radius / steps. A diverse input is shrunk (to 90 % at least) and padded back to its own size, because most
networks take one size only; the papers enlarge. Draws are made per row. With `stop`, a fooled row leaves the batch.

Tags: atlas:AML.T0043.002, atlas:AML.T0005, nist-ai-100-2:NISTAML.025, owasp-ml:ML01, cwe:1039.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from buckler.dice import Dice
from buckler.evasion._search import Goal, aim, ascend, fooled
from buckler.kinds import Perturbed
from buckler.target import frozen
from buckler.threat import Ball

SMALLEST = 0.9
"""A diverse input is at least this share of the original's side."""


def mi_fgsm(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    ball: Ball,
    steps: int = 10,
    diversity: float = 0.0,
    translation: int = 0,
    nesterov: bool = False,
    scales: int = 1,
    goal: Goal = None,
    stop: bool = True,
    seed: int = 0,
) -> Perturbed:
    """Step along the accumulated gradient of the cross-entropy, radius / steps at a time.

    `x` `(B, ...)` in [0, 1], `y` `(B,)`; `ball` linf or l2 with finite radii. `diversity` is the chance that an input
    is shrunk and moved before a gradient (DI, 0.5 in the paper); `translation` is the half-width in pixels of the
    Gaussian that smooths gradients (TI, 7 in the paper, for images of 299); `nesterov` looks ahead (NI); `scales` is
    over how many copies x / 2^i gradients are averaged (SI, 5 in the paper). DI and TI need images `(B, C, H, W)`.
    Without `stop` every row runs all steps and its last iterate is returned, which is what an attack through a
    surrogate needs; with it, a row ends at the first iterate that fools the model. Returns `(B, ...)`; a `ValueError`
    otherwise.
    """
    _check(x, ball, steps, diversity, translation, scales)
    goals, dice = aim(goal, y), Dice(x, seed)
    found, rows = x.clone(), torch.arange(len(x), device=x.device)
    clean, label, moved, momentum = x, y, x, torch.zeros_like(x)
    with frozen(model):
        for _ in range(steps):
            stride = ball.radii(clean) / steps
            ahead = moved + stride * momentum if nesterov else moved
            logits, grad = _gradient(model, ahead, label, goals, diversity, scales, dice)
            if stop:
                if nesterov or diversity > 0:
                    with torch.no_grad():
                        logits = model(moved)
                hit = fooled(logits, label, goals)
                if hit.any():
                    found[rows[hit]] = moved[hit]
                    keep = ~hit
                    rows, clean, label, moved = rows[keep], clean[keep], label[keep], moved[keep]
                    momentum, grad, stride = momentum[keep], grad[keep], stride[keep]
                    goals, ball = None if goals is None else goals[keep], ball.rows(keep)
                    dice.keep(keep)
                    if len(rows) == 0:
                        break
            if translation > 0:
                grad = _smooth(grad, translation)
            mean = grad.flatten(1).abs().mean(1).clamp_min(torch.finfo(grad.dtype).tiny)
            momentum = momentum + grad / mean.view_as(stride)
            moved = ball.clip(clean, moved + stride * _direction(momentum, ball))
    found[rows] = moved
    return found


def _check(x: Tensor, ball: Ball, steps: int, diversity: float, translation: int, scales: int) -> None:
    if ball.norm not in ("linf", "l2"):
        raise ValueError(f"expected a ball in linf or l2, got {ball.norm}: evasion/pgd attacks l1, evasion/fmn l0")
    if not bool(ball.radii(x).isfinite().all()):
        raise ValueError("expected finite radii, got inf: evasion/fmn and evasion/ddn minimise the norm")
    if steps < 1 or scales < 1 or translation < 0 or not 0 <= diversity <= 1:
        raise ValueError(
            "expected steps >= 1, scales >= 1, translation >= 0 and diversity in [0, 1], "
            f"got {steps}, {scales}, {translation} and {diversity}"
        )
    if x.ndim != 4 and (diversity > 0 or translation > 0):
        raise ValueError(f"expected images (B, C, H, W), got {tuple(x.shape)}: use no diversity or translation")


def _gradient(
    model: nn.Module,
    x: Tensor,
    label: Tensor,
    goals: Tensor | None,
    diversity: float,
    scales: int,
    dice: Dice,
) -> tuple[Tensor, Tensor]:
    """The logits of the first copy and the mean of the copies' gradients, one copy in memory at a time."""
    total, first = torch.zeros_like(x), None
    for scale in range(scales):
        point = x.detach().requires_grad_()
        logits = model((_diverse(point, diversity, dice) if diversity > 0 else point) / 2**scale)
        loss = ascend("ce", logits, label, goals).sum()
        if loss.requires_grad:
            (grad,) = torch.autograd.grad(loss, point, materialize_grads=True)
            total = total + grad / scales
        first = logits.detach() if first is None else first
    assert first is not None
    return first, total


def _diverse(x: Tensor, chance: float, dice: Dice) -> Tensor:
    """Every row, by chance, shrunk by whole pixels, put somewhere and surrounded by zeros."""
    draw = dice.uniform(4).to(x)
    height, width = x.shape[2:]
    smallest = int(SMALLEST * width)
    share = (smallest + (draw[:, 1] * (width - smallest + 1)).floor().clamp_max(width - smallest)) / width
    share = torch.where(draw[:, 0] < chance, share, torch.ones_like(share))
    pixels = torch.tensor([width, height], device=x.device, dtype=x.dtype)
    free = ((1 - share)[:, None] * pixels).round()
    centre = ((draw[:, 2:] * (free + 1)).floor().minimum(free) * 2 - free) / pixels
    theta = x.new_zeros(len(x), 2, 3)
    theta[:, 0, 0] = theta[:, 1, 1] = 1 / share
    theta[:, :, 2] = -centre / share[:, None]
    grid = F.affine_grid(theta, list(x.shape), align_corners=False)
    return F.grid_sample(x, grid, mode="bilinear", padding_mode="zeros", align_corners=False)


def _smooth(grad: Tensor, half: int) -> Tensor:
    """Each channel under a Gaussian of `2 * half + 1` pixels, whose radius is three standard deviations."""
    place = torch.arange(-half, half + 1, device=grad.device, dtype=grad.dtype) * (3 / half)
    bell = (-place.square() / 2).exp()
    bell = bell / bell.sum()
    channels = grad.shape[1]
    across = bell.view(1, 1, 1, -1).expand(channels, 1, 1, -1)
    grad = F.conv2d(grad, across, padding=(0, half), groups=channels)
    return F.conv2d(grad, across.transpose(2, 3), padding=(half, 0), groups=channels)


def _direction(momentum: Tensor, ball: Ball) -> Tensor:
    if ball.norm == "linf":
        return momentum.sign()
    return momentum / ball.size(momentum).clamp_min(1e-12).view(-1, *[1] * (momentum.ndim - 1))
