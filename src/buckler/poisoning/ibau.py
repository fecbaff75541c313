"""I-BAU: unlearn the perturbation that, added to every row, raises the loss most.

Zeng, Chen, Park, Mao, Jin and Jia, "Adversarial unlearning of backdoors via implicit hypergradient", ICLR 2022,
https://arxiv.org/abs/2110.03735; settings of the authors' repository, https://github.com/YiZeng623/I-BAU.

Differs from the paper: a round is a number of steps, not one pass over 5,000 rows, so that few rows are enough; the
inner problem of the hypergradient is that of the batch at hand, not of the first batch always; Adam starts anew every
round; 5 % of a batch is perturbed, not 1 %. No guarantee: a trigger that no perturbation within the radius resembles is
not unlearnt.

Tags: atlas:AML.T0018.000, nist-ai-100-2:NISTAML.023, owasp-ml:ML10, cwe:506.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from buckler.data import Rows, as_tensors
from buckler.kinds import Repaired
from buckler.poisoning._dynamics import plain
from buckler.poisoning._look import outputs, where
from buckler.poisoning._touch import classes
from buckler.target import frozen
from buckler.threat import Ball
from buckler.train import LossPerRow, constant, fit, portions

STEP = 0.1
"""Of the gradient descent whose fixed point is the inner problem's answer."""


def ibau(
    model: nn.Module,
    clean: Rows,
    *,
    rounds: int = 5,
    steps: int = 50,
    terms: int = 5,
    radius: float = 10.0,
    ascent: float = 10.0,
    penalty: float = 0.001,
    patched: float = 0.05,
    batch: int = 100,
    rate: float = 1e-3,
    seed: int = 0,
) -> Repaired:
    """Train a copy of `model` against the one perturbation that does all clean rows most harm.

    `clean` is `x` `(N, ...)` and `y` `(N,)`. In each of the `rounds` the perturbation climbs the loss less `penalty`
    times its squared norm, from zero, in `steps` steps of the rate `ascent`, within `radius` in l2; then Adam takes
    `steps` steps at `rate` down the loss of batches in which the share `patched` of the rows is perturbed. The gradient
    includes how the perturbation answers to the weights, by `terms` terms of the implicit function's series. Returns
    the copy, evaluating. Raises `ValueError` for rows of one class.
    """
    rows = as_tensors(clean)
    classes(rows[1])
    outputs(model, rows)
    repaired = copy.deepcopy(model)
    ball = Ball("l2", radius)
    epochs = steps / len(portions(len(rows[1]), batch))
    for turn in range(rounds):
        delta = _worst(repaired, rows, ball, steps, ascent, penalty, batch, seed + turn)
        loss = _unlearning(delta, terms, penalty, patched)
        fit(repaired, rows, loss=loss, epochs=epochs, batch=batch, rate=constant(rate), decay=0.0, optimizer="adam",
            seed=seed + turn)  # fmt: skip
    return repaired.eval()


def _worst(
    model: nn.Module, rows: Rows, ball: Ball, steps: int, ascent: float, penalty: float, batch: int, seed: int
) -> Tensor:
    """One perturbation `(1, ...)` for all rows, climbing their loss batch by batch."""
    x, y = (part.to(where(model)) for part in rows)
    generator = torch.Generator().manual_seed(seed)
    delta = torch.zeros_like(x[:1])
    order: list[Tensor] = []
    with frozen(model):
        for _ in range(steps):
            order = order or list(torch.randperm(len(x), generator=generator).to(x.device).split(batch))
            picked = order.pop()
            delta.requires_grad_()
            height = plain(model(x[picked] + delta), y[picked]).mean() - penalty * delta.square().sum()
            (slope,) = torch.autograd.grad(height, delta)
            delta = ball.project(delta.detach() + ascent * slope)
    return delta


def _unlearning(delta: Tensor, terms: int, penalty: float, patched: float) -> LossPerRow:
    """A loss per row whose gradient in the weights is the hypergradient at `delta` `(1, ...)`.

    With the outer loss L(d, w) and the inner descent P(d, w) = d - STEP * slope(d, w), it is dL/dw + v dP/dw, where v
    is the sum of `terms` powers of dP/dd applied to dL/dd.
    """

    def loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        model.eval()
        here = delta.clone().requires_grad_()
        hit = torch.rand(len(x), *[1] * (x.ndim - 1), device=x.device) < patched
        outer = plain(model(x + here * hit), y)
        (pull,) = torch.autograd.grad(outer.mean(), here, retain_graph=True)
        inner = penalty * here.square().sum() - plain(model(x + here), y).mean()
        (slope,) = torch.autograd.grad(inner, here, create_graph=True)
        answer = pull
        for _ in range(terms - 1):
            (curved,) = torch.autograd.grad(slope, here, grad_outputs=answer, retain_graph=True)
            answer = answer - STEP * curved + pull
        return outer - STEP * (answer.detach() * slope).sum()

    return loss
