"""Self-supervised encoders on Fashion-MNIST: how fast they are pre-trained, and the figures of the ten problems.

    python benchmarks/encoders.py [--parts throughput,worth] [--rows 20000] [--seeds 3]

`throughput` pre-trains the same network by SimCLR for as many steps by a `DataLoader` that makes views of one image at
a time with PIL, as it is usually written, with two workers and with none, and by the library; rows a second, the median
of three rounds in turn, torch's own number of threads. What of the time is the views' is beside it: the network's own steps cost both the
same. `worth` is the accuracy of probes above what each method of pre-training makes of half of `--rows` rows in 500
steps, for every seed, beside the network untrained. Each part is written to benchmarks/results/encoders.json when it
ends.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageEnhance
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from _record import keep
from buckler.catalog import cards, find
from buckler.data import Rows, fashion_mnist, raw
from buckler.encoders._contrast import contrast, headed, views
from buckler.encoders.evaluate import evaluate
from buckler.encoders.simclr import simclr
from buckler.nets import encoder
from buckler.subject import Subject

RESULTS = Path(__file__).parent / "results" / "encoders.json"
NOTE = "shared cores: ratios within a case count, not seconds"
ROUNDS, BATCH = 3, 128


class Pairs(Dataset[tuple[Tensor, Tensor]]):
    """Two views of each image, made by PIL as torchvision makes them: a crop of at least a fifth of the area, resized;
    mirrored or not; other light and contrast."""

    def __init__(self, images: np.ndarray) -> None:
        self.images = images
        self.draw = np.random.default_rng(0)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        image = Image.fromarray(self.images[index])
        return self._view(image), self._view(image)

    def _view(self, image: Image.Image) -> Tensor:
        side = image.size[0]
        area, ratio = self.draw.uniform(0.2, 1) * side * side, np.exp(self.draw.uniform(-1, 1) * np.log(4 / 3))
        wide, high = (min(side, max(1, round(float(np.sqrt(one))))) for one in (area * ratio, area / ratio))
        left, top = self.draw.integers(0, side - wide + 1), self.draw.integers(0, side - high + 1)
        image = image.resize((side, side), Image.Resampling.BILINEAR, (left, top, left + wide, top + high))
        if self.draw.random() < 0.5:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        image = ImageEnhance.Brightness(image).enhance(self.draw.uniform(0.6, 1.4))
        image = ImageEnhance.Contrast(image).enhance(self.draw.uniform(0.6, 1.4))
        return torch.from_numpy(np.asarray(image, dtype=np.float32) / 255)[None]


def usual(data: Rows, steps: int, workers: int) -> float:
    """Seconds of so many steps of SimCLR as it is usually written."""
    model = headed(encoder, data, 128, 0).train()
    descent = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9, weight_decay=5e-4, nesterov=True)
    images = data[0][:, 0].numpy()
    loader = DataLoader(Pairs(images), BATCH, shuffle=True, drop_last=True, num_workers=workers)
    drawn = _endless(loader)
    next(drawn)  # workers have started
    began = time.perf_counter()
    for _ in range(steps):
        one, other = next(drawn)
        descent.zero_grad(set_to_none=True)
        contrast(model(torch.cat([one, other])), 0.2).mean().backward()
        descent.step()
    return time.perf_counter() - began


def _endless(loader: DataLoader[Any]) -> Iterator[tuple[Tensor, Tensor]]:
    while True:
        yield from loader


def ours(data: Rows, steps: int) -> float:
    began = time.perf_counter()
    simclr(data, net=encoder, epochs=steps / (len(data[1]) / BATCH), batch=BATCH)
    return time.perf_counter() - began


def bare(data: Rows, steps: int) -> float:
    """The network's own steps on views that are there already: what no way of making views can save."""
    model = headed(encoder, data, 128, 0).train()
    descent = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9, weight_decay=5e-4, nesterov=True)
    x = torch.cat([data[0][:BATCH], data[0][:BATCH]]).float() / 255
    began = time.perf_counter()
    for _ in range(steps):
        descent.zero_grad(set_to_none=True)
        contrast(model(x), 0.2).mean().backward()
        descent.step()
    return time.perf_counter() - began


def throughput(data: Rows, steps: int = 40) -> dict[str, Any]:
    ways: dict[str, Callable[[], float]] = {
        "buckler": lambda: ours(data, steps),
        "DataLoader and PIL, two workers": lambda: usual(data, steps, 2),
        "DataLoader and PIL, no worker": lambda: usual(data, steps, 0),
        "the network's steps alone": lambda: bare(data, steps),
    }
    rounds: dict[str, list[float]] = {name: [] for name in ways}
    ours(data, 5)
    for _ in range(ROUNDS):
        for name, way in ways.items():
            rounds[name].append(way())
    seconds = {name: statistics.median(taken) for name, taken in rounds.items()}
    began = time.perf_counter()
    look = views(0.2)
    for _ in range(steps):
        look(data[0][:BATCH].float() / 255)
        look(data[0][:BATCH].float() / 255)
    seconds["our views alone"] = time.perf_counter() - began
    rows = {name: round(steps * BATCH / taken) for name, taken in seconds.items()}
    best = min(seconds[name] for name in seconds if name.startswith("DataLoader"))
    return {"rows a second": rows, "ratio": round(best / seconds["buckler"], 2), "steps": steps, "batch": BATCH}


def worth(data: Rows, test: Rows, seeds: int) -> dict[str, Any]:
    """What probes above each method's encoders get right."""
    subject = Subject("Fashion-MNIST", nn.Identity(), test, train=data, body=encoder)
    found: dict[str, Any] = {}
    for path in [card.path for card in cards("encoders") if card.kind == "pretrain"]:
        trials = [evaluate(find(path), replace(subject, model=nn.Flatten()), rows=2000, seed=s) for s in range(seeds)]
        names = [name for name in trials[0].estimates if name.endswith("correct")]
        found[path] = {name: [round(trial.estimates[name].value, 4) for trial in trials] for name in names}
        found[path]["seconds"] = [round(trial.cost.method_seconds, 1) for trial in trials]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", default="throughput,worth")
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--seeds", type=int, default=3)
    arguments = parser.parse_args()
    data, test = raw(fashion_mnist(True), arguments.rows), raw(fashion_mnist(False), 2000)
    parts: dict[str, Callable[[], dict[str, Any]]] = {
        "throughput": lambda: throughput(data),
        "worth": lambda: worth(data, test, arguments.seeds),
    }
    for part in arguments.parts.split(","):
        keep(RESULTS, {part: parts[part]()}, NOTE)


if __name__ == "__main__":
    main()
