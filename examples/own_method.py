"""An attack of your own is a function; the evaluator checks what it claims.

The postponed annotations are needed: the name of the return type says what kind of method it is.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from buckler.dice import Dice
from buckler.evasion.evaluate import evaluate
from buckler.kinds import Perturbed
from buckler.subject import demo
from buckler.threat import Ball


def noise(model: nn.Module, x: Tensor, y: Tensor, *, ball: Ball, tries: int = 20, seed: int = 0) -> Perturbed:
    """Try random signs at the edge of the ball, and keep the first that changes the label."""
    found, dice = x.clone(), Dice(x, seed)
    fooled = torch.zeros(len(x), dtype=torch.bool, device=x.device)
    for _ in range(tries):
        moved = ball.clip(x, x + ball.radii(x) * dice.signs(*x.shape[1:]).to(x))
        with torch.no_grad():
            hit = (model(moved).argmax(1) != y) & ~fooled
        found[hit] = moved[hit]
        fooled |= hit
    return found


def cheat(model: nn.Module, x: Tensor, y: Tensor, *, ball: Ball) -> Perturbed:
    """Leave the ball: every row is fooled, and none of it counts."""
    return 1 - x


if __name__ == "__main__":
    subject = demo("digits")
    for method in (noise, cheat):
        trial = evaluate(method, subject, ball=Ball("linf", 0.2), rows=100, doubt=False)
        print(f"{method.__name__}: robust accuracy {trial.estimates['robust_accuracy']}, {trial.status} {trial.reason}")
