"""Networks made in many ways, and what tells from answers in which: the material of a guess at a model's making."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn
from torch.nn import functional as F

from buckler.data import Rows, count
from buckler.train import fit, portions, started

Way = Mapping[str, str]
WAYS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "family": ("dense", "convolutional"),
        "depth": ("one", "two"),
        "activation": ("relu", "tanh", "elu"),
        "norm": ("none", "batch"),
        "dropout": ("none", "0.3"),
        "optimizer": ("sgd", "adam"),
        "batch": ("32", "128"),
        "decay": ("none", "0.005"),
        "smoothing": ("none", "0.1"),
        "size": ("quarter", "half", "all"),
    }
)
"""Traits of a model's making and their values. Depth is of hidden layers, size a share of the rows at hand."""
WIDTHS, WIDER = (16, 24, 32), (48, 64)
"""Units of a hidden layer, twice the channels of a convolution: of models to learn from, and of others."""
STEPS = 200
"""After how many steps a model has learnt enough, more or less."""
STRENGTH = 1e-3
"""The inverse of the metamodel's regularisation: there are many more answers than models."""
LEAST = -12.0
"""Logarithms of scores below it are taken as it."""
ACTIVATIONS: Mapping[str, Callable[[], nn.Module]] = MappingProxyType({"relu": nn.ReLU, "tanh": nn.Tanh, "elu": nn.ELU})
SHARES: Mapping[str, float] = MappingProxyType({"quarter": 0.25, "half": 0.5, "all": 1.0})


@dataclass(frozen=True, eq=False)
class Metamodel:
    """What tells every trait from answers to the same `questions`; of labels it knows `classes`."""

    questions: int
    classes: int
    learners: Mapping[str, Pipeline]

    def told(self, answers: Tensor) -> np.ndarray:
        """What is looked at of answers `(S, Q)` or `(S, Q, K)`; a `ValueError` for answers of another shape."""
        if answers.shape[1:] not in ((self.questions,), (self.questions, self.classes)):
            raise ValueError(
                f"expected answers to {self.questions} questions about {self.classes} classes, got "
                f"{tuple(answers.shape[1:])}: ask what the metamodel learnt from"
            )
        if answers.ndim == 2:
            seen = answers[..., None] == torch.arange(self.classes, device=answers.device)
        else:
            seen = answers.clamp_min(math.exp(LEAST)).log()
        return seen.double().flatten(1).cpu().numpy()


def taught(answers: Tensor, traits: Mapping[str, Tensor], classes: int) -> Metamodel:
    """What tells `traits`, each `(S,)`, from scores `(S, Q, K)` or labels `(S, Q)` of S models."""
    blank = Metamodel(answers.shape[1], classes, {})
    seen, learners = blank.told(answers), dict[str, Pipeline]()
    for name, which in traits.items():
        learner = make_pipeline(StandardScaler(), LogisticRegression(C=STRENGTH, max_iter=1000))
        learners[name] = learner.fit(seen, which.numpy())
    return Metamodel(blank.questions, classes, learners)


def drawn_ways(traits: Sequence[str], models: int, seed: int) -> dict[str, Tensor]:
    """A value of every trait for every model, `(models,)`: each as often as others, whatever the other traits are."""
    draw = torch.Generator().manual_seed(seed)
    return {name: (torch.arange(models) % len(WAYS[name]))[torch.randperm(models, generator=draw)] for name in traits}


def made(way: Way, rows: Rows, classes: int, widths: Sequence[int], epochs: float, seed: int) -> nn.Module:
    """A network made in a `way` (first values where it says nothing) of some of `rows` `(N, ...)`, drawn by `seed`.

    So are its width, and how long and how fast it learns: for as many steps as `epochs` of all rows have, in batches of
    32, and at most so many as are enough, give or take a factor of 1.4.
    """
    way = {name: values[0] for name, values in WAYS.items()} | dict(way)
    draw = torch.Generator().manual_seed(seed)
    width = widths[int(torch.randint(len(widths), (), generator=draw))]
    longer, faster = (2.0 ** (float(torch.rand((), generator=draw)) - 0.5) for _ in range(2))
    order = torch.randperm(count(rows), generator=draw)[: math.ceil(SHARES[way["size"]] * count(rows))]
    steps, batch = longer * min(epochs * count(rows) / 32, STEPS), int(way["batch"])
    adam, smoothing = way["optimizer"] == "adam", 0.0 if way["smoothing"] == "none" else float(way["smoothing"])
    return fit(
        started(partial(_net, way, tuple(rows[0].shape[1:]), classes, width), seed).to(rows[0].device),
        (rows[0][order], rows[1][order]),
        loss=partial(_smoothed, smoothing),
        epochs=steps / len(portions(len(order), batch)),
        batch=batch,
        rate=faster * (0.004 if adam else 0.07),
        decay=0.0 if way["decay"] == "none" else float(way["decay"]),
        optimizer="adam" if adam else "sgd",
        seed=seed,
    )


def _smoothed(by: float, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(model(x), y, reduction="none", label_smoothing=by)


def _net(way: Way, shape: tuple[int, ...], classes: int, width: int) -> nn.Module:
    """A network for rows of `shape`, which is `(C, H, W)` for a convolutional one."""
    layers, normed = list[nn.Module](), way["norm"] == "batch"
    depth, activation = 1 + WAYS["depth"].index(way["depth"]), ACTIVATIONS[way["activation"]]
    if way["family"] == "convolutional":
        channels, sides = width // 2, shape[1:]
        for inner in (shape[0], channels)[:depth]:
            layers += [nn.Conv2d(inner, channels, 3, 2, 1), *[nn.BatchNorm2d(channels)] * normed, activation()]
            sides = tuple((side + 1) // 2 for side in sides)
        layers.append(nn.Flatten())
        last = channels * math.prod(sides)
    else:
        layers.append(nn.Flatten())
        for inner in (math.prod(shape), width)[:depth]:
            layers += [nn.Linear(inner, width), *[nn.BatchNorm1d(width)] * normed, activation()]
        last = width
    layers += [nn.Dropout(float(way["dropout"]))] if way["dropout"] != "none" else []
    return nn.Sequential(*layers, nn.Linear(last, classes))
