"""Dataset inference: rows that were learnt from lie further from a model's boundaries than rows that were not.

Maini, Yaghini and Papernot, "Dataset inference: ownership resolution in machine learning", ICLR 2021,
https://arxiv.org/abs/2104.10706.

How far every row is from the boundary is read off the suspect: by noise that grows until its label changes (the paper's
Blind Walk, labels only), or, with the weights, by descent to every other class (its MinGD). A linear regression, fitted
on the owner's model, says how member-like distances are. It is then asked about rows that it was not fitted on, learnt
from and not, and the two are compared by their mean scores.

The p-value is the rank of the true division of those rows among divisions drawn by chance. It is exact if it was chance
which rows the owner learnt from, and the suspect does not depend on that; rows that come from two places (a test set
collected later, say) are told apart by any model. A suspect who learnt from the same rows by right, from a public set,
is claimed too, and rightly so by this test: it claims data, not models (Szyller et al., TMLR 2023,
https://arxiv.org/abs/2210.13631, on false claims).

Differs from the paper: one test on all rows at once, since the harmonic mean of p-values over subsamples is none; a
permutation test in the place of Welch's, which needs no normality; distances of one kind of noise are averaged, those
to classes are sorted, and MinGD is in l2 alone. A row with the wrong label is at no distance.

No guarantee that copies are claimed: a model that generalises well tells members from other rows hardly at all.

Tags: atlas:AML.T0048.004, atlas:AML.T0024.002, nist-ai-100-2:NISTAML.031, owasp-ml:ML05.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn

from buckler.claims import secret, shuffled
from buckler.data import Rows, as_tensors, count
from buckler.kinds import Claim, Owned
from buckler.nets import where
from buckler.target import Oracle, frozen
from buckler.theft._claims import answers, readable

Reader = Callable[[nn.Module | Oracle, Tensor, Tensor], tuple[Tensor, int]]
STEP = 0.05
"""How far noise, or a descent, goes in one step: in every pixel's standard deviation, or in l2."""


def dataset_inference(
    model: nn.Module,
    data: Rows,
    *,
    unseen: Rows,
    distances: Literal["walk", "descent"] = "walk",
    most: int = 400,
    directions: int = 4,
    steps: int = 20,
    seed: int = 0,
) -> Owned:
    """Learn from `model` how `data`, which it learnt from, differs from `unseen` rows; half of each is kept for claims.

    Both are `x` `(N, ...)`, float in [0, 1] or uint8, and `y` `(N,)`, at most `most` of each. `walk` asks for labels
    along `directions` of each of three kinds of noise, at most `steps` steps each; `descent` needs a suspect's weights.
    Raises `ValueError` for fewer than eight rows of either, or numbers out of range.
    """
    if min(count(data), count(unseen)) < 8 or min(most, 8) < 8 or directions < 1 or steps < 1:
        raise ValueError(
            "expected eight rows learnt from and unseen or more, and directions and steps of 1 or more, got "
            f"{count(data)}, {count(unseen)}, {directions} and {steps}"
        )
    draw = secret(seed, "dataset_inference")
    (x, y), (u, v) = (as_tensors(some, torch.randperm(count(some), generator=draw)[:most]) for some in (data, unseen))
    noise = _noise(directions, x.shape[1:], draw)

    def read(suspect: nn.Module | Oracle, rows: Tensor, labels: Tensor) -> tuple[Tensor, int]:
        if distances == "walk":
            return _walk(suspect, rows, labels, noise, steps)
        return _descent(readable(suspect), rows, labels, steps)

    def half(last: bool) -> tuple[Tensor, Tensor, Tensor]:
        kept = [slice(len(some) // 2, None) if last else slice(len(some) // 2) for some in (x, u)]
        mine, others = x[kept[0]], u[kept[1]]
        member = torch.arange(len(mine) + len(others)) < len(mine)
        return torch.cat([mine, others]), torch.cat([y[kept[0]], v[kept[1]]]), member

    rows, labels, member = half(False)
    seen = _standard(read(model, rows, labels)[0])
    weights = torch.linalg.lstsq(seen, 2 * member.double()[:, None] - 1, driver="gelsd").solution
    rows, labels, member = half(True)

    def claim(suspect: nn.Module | Oracle) -> Claim:
        found, queries = read(suspect, rows, labels)
        scores = (_standard(found) @ weights).squeeze(1)
        return Claim(shuffled(scores, member, secret(seed, "shuffles")), queries)

    return Owned(claim)


def _standard(found: Tensor) -> Tensor:
    """Every column of distances less its mean, by its spread, and a column of ones: `(N, F + 1)`."""
    found = (found - found.mean(0)) / found.std(0).clamp_min(1e-9)
    return torch.cat([found, torch.ones(len(found), 1, dtype=found.dtype)], 1)


def _noise(directions: int, shape: torch.Size, draw: torch.Generator) -> Tensor:
    """Directions of uniform, normal and Laplacian noise, each of spread 1: `(3 * directions, ...)`."""
    flat = torch.rand(3, directions, *shape, generator=draw) * 2 - 1
    normal = torch.randn(directions, *shape, generator=draw)
    sharp = -flat[2].sign() * (1 - flat[2].abs()).clamp_min(1e-6).log()
    return torch.cat([flat[0] * 3**0.5, normal, sharp / 2**0.5])


def _walk(suspect: nn.Module | Oracle, x: Tensor, y: Tensor, noise: Tensor, steps: int) -> tuple[Tensor, int]:
    """How many steps along noise every row takes to lose its label, `(N, 3)`, one column per kind of noise."""
    many = len(noise)
    taken = torch.zeros(len(x), many, dtype=torch.double)
    alive, queries = torch.arange(len(x) * many), 0
    for step in range(steps):
        row, way = alive // many, alive % many
        said, asked = answers(suspect, (x[row] + step * STEP * noise[way]).clamp(0, 1))
        alive, queries = alive[said == y[row]], queries + asked
        if len(alive) == 0:
            break
        taken.view(-1)[alive] += 1
    return taken.view(len(x), 3, -1).mean(2), queries


def _descent(suspect: nn.Module, x: Tensor, y: Tensor, steps: int) -> tuple[Tensor, int]:
    """How far in l2 every row is from every other class by descent, the nearest first: `(N, K - 1)`."""
    device = where(suspect)
    with torch.no_grad(), frozen(suspect):
        classes = suspect(x[:1].to(device)).shape[1]
    others = torch.stack([torch.arange(classes)[torch.arange(classes) != label] for label in y])
    taken = torch.zeros(others.numel(), dtype=torch.double)
    alive, place = torch.arange(others.numel()), x.repeat_interleave(classes - 1, 0)
    goal, own = others.flatten(), y.repeat_interleave(classes - 1)
    with frozen(suspect):
        for step in range(steps):
            some = place[alive].to(device).requires_grad_()
            out = suspect(some)
            there = (out.argmax(1).cpu() == goal[alive]) if step else (out.argmax(1).cpu() != own[alive])
            toward = out.gather(1, goal[alive].to(device)[:, None]) - out.gather(1, own[alive].to(device)[:, None])
            (slope,) = torch.autograd.grad(toward.sum(), some)
            size = slope.flatten(1).norm(dim=1).clamp_min(1e-12).view(-1, *[1] * (x.ndim - 1))
            place[alive] = (some.detach() + 4 * STEP * slope / size).clamp(0, 1).cpu()
            alive = alive[~there]
            taken[alive] += 1
            if len(alive) == 0:
                break
    return taken.view(len(x), -1).sort(1).values, 0
