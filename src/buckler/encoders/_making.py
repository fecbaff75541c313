"""Encoders made in many ways, and what tells from their features in which: the material of a guess at the making."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn

from buckler.catalog import find
from buckler.data import Rows, count
from buckler.nets import ResidualBlock
from buckler.train import portions

Way = Mapping[str, str]
WAYS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "algorithm": ("simclr", "moco", "simsiam"),
        "crops": ("mild", "strong"),
        "network": ("dense", "convolutional", "residual"),
        "width": ("narrow", "wide"),
        "length": ("short", "long"),
    }
)
"""Traits of an encoder's making and their values. Mild crops keep 70 % of an image or more, strong ones 10 %; width is
of the layers within, not of the features; length is of training."""
LEAST: Mapping[str, float] = MappingProxyType({"mild": 0.7, "strong": 0.1})
FEATURES = (16, 24, 32)
"""How many features a last linear layer may have: anybody sees that, and it is drawn whatever the traits are."""
WIDTHS: Mapping[str, int] = MappingProxyType({"narrow": 4, "wide": 10})
STEPS: Mapping[str, int] = MappingProxyType({"short": 25, "long": 80})
BATCH = 64
STRENGTH = 0.1
"""The inverse of the metamodel's regularisation."""


@dataclass(frozen=True, eq=False)
class Metamodel:
    """What tells every trait from a `summary` of answers to so many `questions`."""

    questions: int
    learners: Mapping[str, Pipeline]

    def told(self, seen: Tensor, trait: str) -> Tensor:
        """Log-probabilities of the values of a trait, by summaries `(S, P)`: `(S, V)`."""
        return torch.from_numpy(np.asarray(self.learners[trait].predict_log_proba(seen.numpy())))


def taught(seen: Tensor, ways: Mapping[str, Tensor], asked: int) -> Metamodel:
    """What tells the traits `ways`, each `(S,)`, from summaries `(S, P)` of S encoders that were `asked` so much."""
    learners = dict[str, Pipeline]()
    for name, which in ways.items():
        learner = make_pipeline(StandardScaler(), LogisticRegression(C=STRENGTH, max_iter=2000))
        learners[name] = learner.fit(seen.numpy(), which.numpy())
    return Metamodel(asked, learners)


def drawn_ways(traits: Sequence[str], models: int, seed: int) -> dict[str, Tensor]:
    """A value of every trait for every encoder, `(models,)`: each as often as others, whatever the others are."""
    draw = torch.Generator().manual_seed(seed)
    return {name: (torch.arange(models) % len(WAYS[name]))[torch.randperm(models, generator=draw)] for name in traits}


def made(way: Way, rows: Rows, seed: int) -> nn.Module:
    """An encoder made in a `way` (first values where it says nothing) of `rows` `(N, C, H, W)`, drawn by `seed`.

    So are how deep it is, whether its features are those of a last linear layer and how many that has, and how long and
    fast it learns, give or take a factor of 1.3: an encoder that is asked about may be of any such kind.
    """
    way = {name: values[0] for name, values in WAYS.items()} | dict(way)
    draw = torch.Generator().manual_seed(seed)
    features = FEATURES[int(torch.randint(len(FEATURES), (), generator=draw))]
    longer, faster = (1.3 ** (2 * float(torch.rand((), generator=draw)) - 1) for _ in range(2))
    linear, deeper = (bool(torch.randint(2, (), generator=draw)) for _ in range(2))
    last = features if linear else None
    net = partial(_net, way["network"], tuple(rows[0].shape[1:]), WIDTHS[way["width"]], 1 + deeper, last)
    return find(f"encoders/{way['algorithm']}")(
        rows,
        net=lambda: net().to(rows[0].device),
        least=LEAST[way["crops"]],
        out=16,
        batch=BATCH,
        epochs=longer * STEPS[way["length"]] / len(portions(count(rows), BATCH)),
        rate=faster * (0.05 if way["algorithm"] == "simsiam" else 0.1),
        seed=seed,
    )


def _net(kind: str, shape: tuple[int, ...], width: int, depth: int, features: int | None) -> nn.Module:
    """An encoder of images of `shape` `(C, H, W)` with `depth` blocks: `features` of a last linear layer, or, if None,
    what comes out of the last block."""
    layers = list[nn.Module]()
    if kind == "dense":
        layers, wide = [*layers, nn.Flatten()], math.prod(shape)
        for _ in range(depth):
            layers += [nn.Linear(wide, 8 * width), nn.BatchNorm1d(8 * width), nn.ReLU()]
            wide = 8 * width
    else:
        layers = [nn.Conv2d(shape[0], width, 3, 1 if shape[1] < 16 else 2, 1), nn.BatchNorm2d(width), nn.ReLU()]
        for _ in range(depth):
            block = [nn.Conv2d(width, 2 * width, 3, 2, 1), nn.BatchNorm2d(2 * width), nn.ReLU()]
            layers += [ResidualBlock(width, 2 * width, 2)] if kind == "residual" else block
            width *= 2
        layers, wide = [*layers, nn.AdaptiveAvgPool2d(2), nn.Flatten()], 4 * width
    return nn.Sequential(*layers, *([] if features is None else [nn.Linear(wide, features)]))
