"""Fingerprint of a model as it is: points just beyond its boundaries, where its copies agree with it.

Cao, Jia and Gong, "IPGuard: protecting intellectual property of deep neural networks via fingerprinting the
classification boundary", AsiaCCS 2021, https://arxiv.org/abs/1910.12903.

From each of some rows a search goes to a class drawn by chance and stops a small margin beyond the model's boundary.
The model gives all of the points the class that they were moved to, copies give it to most of them, and other models to
fewer. To how many cannot be known from the draw of the classes: what is moved over one model's boundary is often moved
over another's as well, so that an exact binomial tail at chance 1/(K-1) is wrong for every independent model (a test
shows it). So the null is measured: the same training makes reference models, each gets points of its own in the same
way, and the suspect is asked about all of them.

The p-value is the rank of the model among the references by how far the suspect agrees with their points. It is exact
for any suspect that does not depend on the draws of the model's training, however it was trained and on whatever rows,
if the model and its references come from the same training. It is never below 1 / (references + 1): fewer than 99
cannot claim at 1 %.

Differs from the paper: there is no threshold on agreement, but the rank; classes are drawn by chance, and the search is
a signed gradient descent that keeps to a ball.

No guarantee that copies agree: extraction with few questions moves boundaries, and so does further training.

Tags: atlas:AML.T0048.004, atlas:AML.T0024.002, nist-ai-100-2:NISTAML.031, owasp-ml:ML05.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from buckler.claims import rank, secret
from buckler.data import Rows, as_tensors, count
from buckler.kinds import Claim, Owned
from buckler.nets import where
from buckler.target import Oracle, frozen
from buckler.theft._claims import answers


def fingerprint(
    model: nn.Module,
    data: Rows,
    *,
    training: Callable[[Rows, int], nn.Module],
    references: int = 99,
    points: int = 40,
    margin: float = 1.0,
    radius: float = 0.3,
    steps: int = 30,
    seed: int = 0,
) -> Owned:
    """Find `points` that are told by `model`, and as many for each of `references` models of the same `training`.

    `data` is `x` `(N, ...)`, float in [0, 1] or uint8, and `y` `(N,)`: what the model learnt from. `training` makes a
    model of rows and a seed. Rows are moved by `steps`, within linf `radius`, until their class leads by `margin`.
    Raises `ValueError` for no rows, points or references, or numbers out of range.
    """
    if min(points, references, steps) < 1 or margin < 0 or not 0 < radius <= 1:
        raise ValueError(
            "expected points, references and steps of 1 or more, a margin of 0 or more and a radius above 0 and at "
            f"most 1, got {points}, {references}, {steps}, {margin} and {radius}"
        )
    draw = secret(seed, "fingerprint")
    x, _ = as_tensors(data, torch.randperm(count(data), generator=draw)[:points])
    far = torch.rand(len(x), generator=draw)
    seeds = torch.randint(2**31, (references,), generator=draw).tolist()
    found = [_beyond(model, x, far, margin, radius, steps)]
    found += [_beyond(training(data, other), x, far, margin, radius, steps) for other in seeds]

    def claim(suspect: nn.Module | Oracle) -> Claim:
        said, queries = answers(suspect, torch.cat([moved for moved, _ in found]))
        agreed = (said.view(len(found), -1) == torch.stack([labels for _, labels in found])).double().mean(1)
        return Claim(rank(float(agreed[0]), agreed[1:]), queries)

    return Owned(claim)


def _beyond(
    model: nn.Module, x: Tensor, far: Tensor, margin: float, radius: float, steps: int
) -> tuple[Tensor, Tensor]:
    """Points near `x` `(B, ...)` that the model gives another class, and that class `(B,)`, on the CPU.

    `far` `(B,)` in [0, 1) says which of the others. A row that does not get there keeps what it came to and is given.
    """
    x = x.to(where(model))
    moved, rate = x.clone(), 2.5 * radius / steps
    with frozen(model):
        with torch.no_grad():
            logits = model(x)
        others = logits.scatter(1, logits.argmax(1, keepdim=True), -torch.inf).argsort(1, descending=True)
        goal = others.gather(1, (far.to(x.device) * (logits.shape[1] - 1)).long()[:, None])
        for _ in range(steps):
            moved.requires_grad_()
            out = model(moved)
            lead = (out.gather(1, goal) - out.scatter(1, goal, -torch.inf).amax(1, keepdim=True)).squeeze(1)
            (slope,) = torch.autograd.grad(lead.clamp_max(margin).sum(), moved)
            moved = (moved.detach() + rate * slope.sign()).clamp(0, 1)
            moved = torch.minimum(torch.maximum(moved, x - radius), x + radius)
        with torch.no_grad():
            return moved.cpu(), model(moved).argmax(1).cpu()
