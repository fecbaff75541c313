"""Privacy audited in one training: canaries are in it by fair coins, and what it learnt of them is guessed back.

Steinke, Nasr and Jagielski, "Privacy auditing with one (1) training run", NeurIPS 2023,
https://arxiv.org/abs/2305.08846.

A canary is a training row with a wrong label, which nothing but the canary itself teaches. Its score is how much more
confident in that label the model is than one that was trained in the same way, with a seed of its own, without any
canary: with the same seed the noise that hides the canaries would cancel.

Differs from the paper: none in the bound, which `stats.epsilon` computes, with all guesses that are tried accounted
for. Canaries are rows, not gradients, and the adversary sees the last weights only: on small data the bound then lies
far below what differential privacy promises, and 0 clears nothing. What it shows is broken privacy, and of that no more
than so many canaries reach (`stats.reach`): 200 that are all guessed right show an epsilon of 3.75 at delta 1e-5.

Tags: atlas:AML.T0024.000, nist-ai-100-2:NISTAML.033, owasp-ml:ML04.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from buckler.data import Rows, batches, raw
from buckler.kinds import Audited, Protected
from buckler.privacy._shadows import answers_of, confidence
from buckler.target import Oracle, frozen
from buckler.train import fit, started

LEAST = 20


def audit_epsilon(
    data: Rows,
    *,
    net: Callable[[], nn.Module],
    training: Callable[[Rows, Callable[[], nn.Module], int], Protected] | None = None,
    canaries: int = 200,
    epochs: float = 60,
    batch: int = 64,
    rate: float = 0.05,
    seed: int = 0,
) -> Audited:
    """Train on `data`, `x` `(N, ...)` and `y` `(N,)`, of which `canaries` rows (a half at most) are mislabelled, each
    held or left out by a coin, and score them.

    `training` takes rows, `net` and a seed; it is called twice, with independent ones. None is the plain loop for
    `epochs`, with `batch` and `rate`. Returns scores and coins, and the promise. Raises `ValueError` for too few rows
    or canaries, or for rows of one class.
    """
    x, y = raw(data)
    many, classes = min(canaries, len(y) // 2), int(y.max()) + 1
    if many < LEAST or classes < 2:
        raise ValueError(
            f"expected {LEAST} canaries or more, half of all rows at most, and labels of 2 classes or more, got "
            f"{canaries} of {len(y)} rows and {classes} classes"
        )
    draw = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(y), generator=draw)
    chosen, rest = order[:many], order[many:]
    wrong = (y[chosen] + torch.randint(1, classes, (many,), generator=draw)) % classes
    held = torch.rand(many, generator=draw) < 0.5
    one, two = torch.randint(2**31, (2,), generator=draw).tolist()

    def plainly(rows: Rows, net: Callable[[], nn.Module], seed: int) -> Protected:
        return Protected(fit(started(net, seed), rows, epochs=epochs, batch=batch, rate=rate, decay=0.0, seed=seed))

    learn = plainly if training is None else training
    made = learn((torch.cat([x[rest], x[chosen[held]]]), torch.cat([y[rest], wrong[held]])), net, one)
    other = learn((x[rest], y[rest]), net, two)
    score = _confident(made.model, x[chosen], wrong) - _confident(other.model, x[chosen], wrong)
    return Audited(score, held, made.epsilon, made.delta)


def _confident(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """In labels `y` `(B,)`, as log-odds `(B,)`."""
    where = next(model.parameters()).device
    with frozen(model):
        said = [answers_of(Oracle(model, "scores"), part.to(where), 1) for part, _ in batches((x, y), 1024)]
    return confidence(torch.cat(said), y).squeeze(1)
