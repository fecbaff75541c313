"""Worlds with a known answer: confidences drawn from normal distributions, models that remember, and one that cannot.

In the first, the log-odds of a row's label are drawn around a level of its own, which learning from the row raises:
the area under the curve and what is found at any share of false alarms then have closed forms.
"""

from __future__ import annotations

from collections.abc import Callable
from statistics import NormalDist

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from buckler.data import Rows
from buckler.privacy._farm import halves
from buckler.privacy._shadows import Shadows
from buckler.subject import Subject
from buckler.target import Oracle, Reveals
from buckler.train import fit, started

SIDE = 6


def log_odds(values: Tensor) -> Tensor:
    """Two-class answers `(N, 1, 2)` whose label 0 has these log-odds `(N,)`."""
    return torch.stack([F.logsigmoid(values), F.logsigmoid(-values)], -1).float()[:, None]


def normal_world(
    rows: int, models: int, *, gain: float, spread: Tensor | float = 1.0, seed: int = 0
) -> tuple[Oracle, Tensor, Tensor, Tensor, Shadows]:
    """A target, rows `x` and `y`, who is a member, and shadows: every row's log-odds are normal around its own level.

    A member's are higher by `gain` times the row's `spread`.
    """
    draw = torch.Generator().manual_seed(seed)
    held = torch.cat([halves(rows, 2, seed + 1)[:1], halves(rows, models, seed)])
    level = torch.randn(rows, generator=draw, dtype=torch.double)
    noise = torch.randn(models + 1, rows, generator=draw, dtype=torch.double)
    answers = [log_odds(one) for one in level + spread * (gain * held + noise)]
    y = torch.zeros(rows, dtype=torch.long)
    x = torch.arange(rows, dtype=torch.float32)[:, None]
    return listed(answers[0]), x, y, held[0], Shadows(held[1:], answers[1:], y)


def listed(answers: Tensor, reveals: Reveals = "scores") -> Oracle:
    """An oracle that answers row i, which holds its number, with the i-th of `answers` `(N, 1, K)`."""
    return Oracle(lambda x: answers[x[:, 0].long(), 0].exp(), reveals)


def area(gain: float) -> float:
    """The area under the curve of two normal distributions of one spread, `gain` spreads apart."""
    return NormalDist().cdf(gain / 2**0.5)


def found(gain: float, alarms: float) -> float:
    return 1 - NormalDist().cdf(NormalDist().inv_cdf(1 - alarms) - gain)


def noise(many: int, seed: int = 0, classes: int = 4) -> Rows:
    """Images of noise with labels of chance: nothing but the rows themselves can be learnt."""
    draw = torch.Generator().manual_seed(seed)
    return torch.rand(many, 1, SIDE, SIDE, generator=draw), torch.randint(0, classes, (many,), generator=draw)


def bright(many: int, seed: int = 0) -> Rows:
    """Images whose brightness is their label: easy to learn, and nothing of a row is worth remembering."""
    x, y = noise(many, seed)
    return 0.1 * x + 0.25 * y[:, None, None, None].float(), y


def net() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(SIDE * SIDE, 128), nn.ReLU(), nn.Linear(128, 4))


def normed() -> nn.Module:
    """With batch norm, whose buffers are part of the model."""
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * SIDE * SIDE, 4)
    )


def by_heart(data: Rows) -> nn.Module:
    """A recipe that learns every row by heart."""
    return fit(started(net, 0), data, epochs=40, batch=32, rate=0.01, decay=0.0, optimizer="adam")


def untaught(data: Rows) -> nn.Module:
    """A recipe that draws a network from the rows' number and looks at nothing: it knows no row."""
    return started(net, int(data[0].double().sum() * 1e6) % 2**31).eval()


def subject(recipe: Callable[[Rows], nn.Module], rows: int = 200, **more: object) -> Subject:
    train, test = noise(rows), noise(rows, seed=1)
    given = {"name": "noise", "model": recipe(train), "test": test, "train": train, "recipe": recipe}
    return Subject(**{**given, **more})  # pyright: ignore
