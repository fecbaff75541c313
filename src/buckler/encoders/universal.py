"""A universal perturbation of an encoder: one change of any input that no task built on it survives.

Zhou, Hu, Wang, Zhang, Zhang and Jin, "Downstream-agnostic adversarial examples" (AdvEncoder), ICCV 2023,
https://arxiv.org/abs/2307.10562.

Differs from the paper: the perturbation is climbed to directly, by the sign of a momentum of gradients, instead of by a
generator that is trained to draw it; features are told apart by the paper's contrastive loss, and its loss on high
frequencies and its patch are left out.

Tags: atlas:AML.T0043.000, atlas:AML.T0015, nist-ai-100-2:NISTAML.022, owasp-ml:ML01, cwe:1039.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from buckler.data import floats
from buckler.embedding import embedded
from buckler.kinds import Perturbed
from buckler.target import frozen
from buckler.threat import Ball


def universal(
    encoder: nn.Module,
    x: Tensor,
    *,
    ball: Ball,
    pool: Tensor,
    steps: int = 300,
    step: float = 0.1,
    momentum: float = 0.9,
    temperature: float = 0.2,
    batch: int = 128,
    seed: int = 0,
) -> Perturbed:
    """Add to every row of `x` `(B, ...)`, in [0, 1], the one perturbation that most moves the features of `pool`.

    `pool` `(N, ...)`, uint8 or in [0, 1], are inputs of the same kind, without labels; the perturbation takes `steps`
    steps over batches of them, each of `step` radii at first and then less. An input's features are to be unlike its
    own without it, and like others', by cosine at `temperature`. Returns `(B, ...)` within `ball`, linf or l2 of one
    radius (a `ValueError` otherwise).
    """
    if ball.norm not in ("linf", "l2") or isinstance(ball.radius, Tensor):
        raise ValueError(f"expected a ball in linf or l2 with one radius for all rows, got {ball}")
    draw = torch.Generator().manual_seed(seed)
    known = F.normalize(embedded(encoder, pool.to(x.device)), dim=1).to(x.device)
    delta = (2 * torch.rand(1, *x.shape[1:], generator=draw) - 1).to(x.device) * ball.radius / 2
    delta, heading = ball.project(delta), torch.zeros_like(delta)
    with frozen(encoder):
        for turn in range(steps):
            rows = torch.randperm(len(pool), generator=draw)[:batch]
            clean = floats(pool[rows]).to(x.device)
            moved = delta.detach().requires_grad_()
            features = F.normalize(encoder((clean + moved).clamp(0, 1)), dim=1)
            alike = features @ known[rows.to(x.device)].T / temperature
            strange = F.cross_entropy(alike, torch.arange(len(rows), device=x.device))
            (grad,) = torch.autograd.grad(strange, moved)
            heading = momentum * heading + grad / grad.norm().clamp_min(1e-12)
            along = heading.sign() if ball.norm == "linf" else heading / heading.norm().clamp_min(1e-12)
            delta = ball.project(delta + step * (1 - turn / steps) * ball.radius * along)
    return ball.clip(x, x + delta)
