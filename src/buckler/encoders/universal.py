"""A universal perturbation of an encoder: one change of any input that no task built on it survives.

Zhou, Hu, Zhao, Wang, Zhang, Hou and Jin, "Downstream-agnostic adversarial examples" (AdvEncoder), ICCV 2023,
https://arxiv.org/abs/2307.12280.

Differs from the paper: the perturbation is climbed to directly, by the sign of a momentum of gradients, instead of by a
generator that is trained to draw it; what is climbed is the cross-entropy of a task of the adversary's own, in which
group an input's features are (`groups=0` is the paper's contrastive loss, which on small images does no more than
noise); its loss on high frequencies and its patch are left out. One change for all inputs is a weak attack on small
images, where even one made with the task and its labels leaves most rows right: little effect says nothing of the rest.

Tags: atlas:AML.T0043.000, atlas:AML.T0015, nist-ai-100-2:NISTAML.022, owasp-ml:ML01, cwe:1039.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from buckler.data import floats
from buckler.encoders._pseudo import grouped
from buckler.kinds import Perturbed
from buckler.target import frozen
from buckler.threat import Ball


def universal(
    encoder: nn.Module,
    x: Tensor,
    *,
    ball: Ball,
    pool: Tensor,
    groups: int = 10,
    steps: int = 300,
    step: float = 0.1,
    momentum: float = 0.9,
    temperature: float = 0.2,
    batch: int = 128,
    seed: int = 0,
) -> Perturbed:
    """Add to every row of `x` `(B, ...)`, in [0, 1], the one perturbation that most moves the features of `pool`.

    `pool` `(N, ...)`, uint8 or in [0, 1], are inputs of the same kind, without labels; the perturbation takes `steps`
    steps over batches of them, each of `step` radii at first and then less. Features are to leave their one of `groups`
    groups of the pool's; with none of them, to be unlike an input's own without the perturbation, and like others', by
    cosine at `temperature`. Returns `(B, ...)` within `ball`, linf or l2 of one radius (a `ValueError` otherwise, and
    for fewer inputs than groups).
    """
    if ball.norm not in ("linf", "l2") or isinstance(ball.radius, Tensor):
        raise ValueError(f"expected a ball in linf or l2 with one radius for all rows, got {ball}")
    draw = torch.Generator().manual_seed(seed)
    delta = (2 * torch.rand(1, *x.shape[1:], generator=draw) - 1).to(x.device) * ball.radius / 2
    delta, heading = ball.project(delta), torch.zeros_like(delta)
    model = grouped(encoder, pool, groups, seed) if groups else encoder
    with frozen(model):
        known = torch.cat([_still(model, part.to(x.device), groups) for part in pool.split(512)])
        for turn in range(steps):
            rows = torch.randperm(len(pool), generator=draw)[:batch]
            clean = floats(pool[rows]).to(x.device)
            moved = delta.detach().requires_grad_()
            out, rows = model((clean + moved).clamp(0, 1)), rows.to(x.device)
            if groups:
                strange = F.cross_entropy(out, known[rows])
            else:
                alike = F.normalize(out, dim=1) @ known[rows].T / temperature
                strange = F.cross_entropy(alike, torch.arange(len(rows), device=x.device))
            (grad,) = torch.autograd.grad(strange, moved)
            heading = momentum * heading + grad / grad.norm().clamp_min(1e-12)
            along = heading.sign() if ball.norm == "linf" else heading / heading.norm().clamp_min(1e-12)
            delta = ball.project(delta + step * (1 - turn / steps) * ball.radius * along)
    return ball.clip(x, x + delta)


def _still(model: nn.Module, x: Tensor, groups: int) -> Tensor:
    """What inputs are without the perturbation: their groups `(N,)`, or the directions of their features `(N, D)`."""
    with torch.no_grad():
        out = model(floats(x))
    return out.argmax(1) if groups else F.normalize(out, dim=1)
