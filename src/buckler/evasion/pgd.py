"""Projected gradient descent.

Madry, Makelov, Schmidt, Tsipras and Vladu, "Towards deep learning models resistant to adversarial attacks", ICLR 2018,
https://arxiv.org/abs/1706.06083. The l1 step is the sparse one of Tramer and Boneh, NeurIPS 2019,
https://arxiv.org/abs/1904.13000, followed by the exact projection onto ball and box of Croce and Hein, ICML 2021,
https://arxiv.org/abs/2103.01208.

Differs from the paper: a row leaves the batch the moment it is fooled; a linf row whose iterate has been visited before
(in this restart) leaves too, because from there it can only walk the same circle (Heinrich et al., "Stop walking in
circles!", 2025, https://arxiv.org/abs/2503.19347): neither changes which rows are fooled. Gradients are normalised for
l2; the random start is drawn per row.

Tags: atlas:AML.T0043.000, atlas:AML.T0015, nist-ai-100-2:NISTAML.022, owasp-ml:ML01, cwe:1039.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn

from buckler.dice import Dice, fingerprint_rows
from buckler.evasion._boxed import bounded, l1_in_box
from buckler.evasion._search import Goal, Objective, aim, ascend, fooled, gradient
from buckler.kinds import Perturbed
from buckler.target import frozen
from buckler.threat import Ball


def pgd(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    ball: Ball,
    steps: int = 40,
    step: float | None = None,
    restarts: int = 1,
    objective: Objective = "ce",
    sparsity: float = 0.01,
    goal: Goal = None,
    stop: bool = True,
    seed: int = 0,
) -> Perturbed:
    """Climb the loss inside the ball from random starts, one step of fixed length at a time.

    `x` `(B, ...)` in [0, 1], `y` `(B,)`; `ball` linf, l2 or l1 (a `ValueError` otherwise). `step` is a share of the
    radius, 2.5 / steps if not given; `sparsity` is the share of elements that an l1 step moves. With `stop` a row ends
    at its first success; without, every row runs all steps and ends where its loss was highest, which is what an attack
    through a surrogate needs. Returns `(B, ...)`: an adversarial example where one was found, else the highest loss
    met.
    """
    if ball.norm == "l0":
        raise ValueError("expected a ball in linf, l2 or l1, got l0: evasion/fmn attacks l0")
    length = 2.5 / steps if step is None else step
    goals = aim(goal, y)
    found, highest = x.clone(), x.new_full((len(x),), -torch.inf)
    todo = torch.arange(len(x), device=x.device)
    with frozen(model):
        for restart in range(restarts):
            dice = Dice(x[todo], seed * 1_000_003 + restart)
            rows, clean, label = todo, x[todo], y[todo]
            wanted = None if goals is None else goals[todo]
            limit = ball.rows(todo)
            moved = _start(clean, limit, dice)
            visited: list[Tensor] = []
            won = torch.zeros(len(x), dtype=torch.bool, device=x.device)
            for count in range(steps + 1):
                logits, loss, grad = gradient(model, moved, partial(ascend, objective, y=label, goal=wanted))
                hit = fooled(logits, label, wanted)
                better = torch.where(won[rows], hit & (loss > highest[rows]), hit | (loss > highest[rows]))
                found[rows[better]], highest[rows[better]] = moved[better], loss[better]
                won[rows[hit]] = True
                if count == steps:
                    break
                leave = hit if stop else torch.zeros_like(hit)
                if ball.norm == "linf":
                    here = fingerprint_rows(moved)
                    for before in visited:
                        leave = leave | (before == here)
                    visited.append(here)
                if leave.any():
                    keep = ~leave
                    rows, clean, label, moved, grad = rows[keep], clean[keep], label[keep], moved[keep], grad[keep]
                    wanted = None if wanted is None else wanted[keep]
                    limit, visited = limit.rows(keep), [before[keep] for before in visited]
                    if len(rows) == 0:
                        break
                reach = length * limit.radii(clean)
                if ball.norm == "l1":
                    moved = _sparse_step(clean, moved, grad, limit, reach, sparsity)
                else:
                    moved = limit.clip(clean, moved + reach * _direction(grad, ball))
            todo = todo[~won[todo]] if stop else todo
            if len(todo) == 0:
                break
    return found


def _start(x: Tensor, ball: Ball, dice: Dice) -> Tensor:
    if ball.norm == "linf":
        delta = (dice.uniform(*x.shape[1:]).to(x) * 2 - 1) * ball.radii(x)
    else:
        delta = dice.normal(*x.shape[1:]).to(x)
        size = ball.size(delta).clamp_min(1e-12).view_as(ball.radii(x))
        delta = delta / size * ball.radii(x) * dice.uniform(*[1] * (x.ndim - 1)).to(x)
    return ball.clip(x, x + delta)


def _direction(grad: Tensor, ball: Ball) -> Tensor:
    """The step of unit length in the ball's norm, linf or l2, that gains most."""
    if ball.norm == "linf":
        return grad.sign()
    flat = grad.flatten(1)
    return (flat / flat.norm(dim=1, keepdim=True).clamp_min(1e-12)).view_as(grad)


def _sparse_step(clean: Tensor, moved: Tensor, grad: Tensor, ball: Ball, reach: Tensor, sparsity: float) -> Tensor:
    """A step of l1 length `reach` over the elements that gain most, and back into the ball within the box.

    At least the share `sparsity` of the elements move, and more where a step is longer than so few elements can take;
    an element that the box holds already is passed over.
    """
    flat, place = grad.flatten(1), moved.flatten(1)
    held = ((place <= 0) & (flat < 0)) | ((place >= 1) & (flat > 0))
    size = flat.abs().masked_fill(held, -1)
    many = torch.maximum(2 * reach.flatten(1), torch.full_like(reach.flatten(1), round(sparsity * flat.shape[1])))
    many = many.nan_to_num(posinf=flat.shape[1]).clamp(1, flat.shape[1]).ceil()
    chosen = (size.argsort(1, descending=True).argsort(1) < many) & ~held
    delta = place + chosen * flat.sign() * (reach.flatten(1).clamp(max=flat.shape[1]) / many) - clean.flatten(1)
    limit = bounded(ball, clean).radii(clean).flatten(1)
    return (clean.flatten(1) + l1_in_box(clean.flatten(1), delta, limit)).view_as(clean)
