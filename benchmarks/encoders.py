"""Self-supervised encoders: how fast they are pre-trained, what they are worth, and how the ten problems' attacks do.

    python benchmarks/encoders.py [--parts throughput,worth,...] [--rows 20000] [--seeds 3]

`throughput` pre-trains the same network by SimCLR for as many steps by a `DataLoader` that makes views of one image at
a time with PIL, written as lean as it can be, and with torchvision's transforms where torchvision is installed, each
with two workers and with none, and by the library, in turn, with torch's own number of threads; rows a second, and how
many times as fast, are medians of nine rounds. `worth` is what probes above encoders of half of `--rows` rows of
Fashion-MNIST get right, and `attacks` what attacks and defences do to them, for every seed. `overtrained` asks who was
learnt from, of encoders that saw few digits often. `repairs` is what more pre-training leaves of backdoors in the
demo's encoder, `tokens` what sponges cost a vision transformer that drops tokens. `detection` is DECREE on ten encoders
of digits without and with a backdoor, of seeds that nothing was chosen on, and `audit` the whole plan on the digits
demo. What was found is written to benchmarks/results/encoders.json after every seed.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast

import numpy as np
import torch
from PIL import Image, ImageEnhance
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from _record import keep, kept
from buckler import stats
from buckler.audit import audit
from buckler.catalog import find
from buckler.data import Rows, fashion_mnist, raw
from buckler.encoders._contrast import contrast, headed, views
from buckler.encoders.evaluate import evaluate
from buckler.encoders.simclr import simclr
from buckler.nets import VisionTransformer, encoder
from buckler.subject import Subject, demo
from buckler.threat import Ball, Share

RESULTS = Path(__file__).parent / "results" / "encoders.json"
NOTE = "shared cores: ratios within a case count, not seconds"
ROUNDS, BATCH = 9, 128
PARTS = "throughput,worth,attacks,overtrained,repairs,tokens,detection,audit"
Case = tuple[str, dict[str, Any], dict[str, Any]]
"""The path of a method, its knobs, and what the evaluation is asked."""


class Pairs(Dataset[tuple[Tensor, Tensor]]):
    """Two views of each image: a crop of at least a fifth of the area, resized; mirrored or not; other light and
    contrast."""

    def __init__(self, images: np.ndarray, view: Callable[[Image.Image], Tensor]) -> None:
        self.images, self.view = images, view

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        image = Image.fromarray(self.images[index])
        return self.view(image), self.view(image)


class Lean:
    """A view by PIL and as little else as can be."""

    def __init__(self) -> None:
        self.draw = np.random.default_rng(0)

    def __call__(self, image: Image.Image) -> Tensor:
        side = image.size[0]
        area, ratio = self.draw.uniform(0.2, 1) * side * side, np.exp(self.draw.uniform(-1, 1) * np.log(4 / 3))
        wide, high = (min(side, max(1, round(float(np.sqrt(one))))) for one in (area * ratio, area / ratio))
        left, top = int(self.draw.integers(0, side - wide + 1)), int(self.draw.integers(0, side - high + 1))
        image = image.resize((side, side), Image.Resampling.BILINEAR, (left, top, left + wide, top + high))
        if self.draw.random() < 0.5:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        image = ImageEnhance.Brightness(image).enhance(self.draw.uniform(0.6, 1.4))
        image = ImageEnhance.Contrast(image).enhance(self.draw.uniform(0.6, 1.4))
        return torch.from_numpy(np.asarray(image, dtype=np.float32) / 255)[None]


def transforms() -> Callable[[Image.Image], Tensor] | None:
    """A view by torchvision's transforms, if they can be imported."""
    try:
        from torchvision import transforms as made  # pyright: ignore[reportMissingImports]
    except (ImportError, RuntimeError):  # torchvision of another torch raises the latter
        return None
    crop, jitter = made.RandomResizedCrop(28, scale=(0.2, 1.0)), made.ColorJitter(0.4, 0.4)
    return made.Compose([crop, made.RandomHorizontalFlip(), jitter, made.ToTensor()])


def usual(data: Rows, steps: int, workers: int, view: Callable[[Image.Image], Tensor]) -> float:
    """Seconds of so many steps of SimCLR as it is usually written."""
    model = headed(encoder, data, 128, 0).train()
    descent = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9, weight_decay=5e-4, nesterov=True)
    images = data[0][:, 0].numpy()
    loader = DataLoader(Pairs(images, view), BATCH, shuffle=True, drop_last=True, num_workers=workers)
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


def throughput(data: Rows, steps: int = 60) -> dict[str, Any]:
    ways: dict[str, Callable[[], float]] = {
        "buckler": partial(ours, data, steps),
        "the network's steps alone": partial(bare, data, steps),
    }
    for name, view in (("PIL", Lean()), ("torchvision", transforms())):
        if view is not None:
            for workers, said in ((2, "two workers"), (0, "no worker")):
                ways[f"DataLoader and {name}, {said}"] = partial(usual, data, steps, workers, view)
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
    times = {
        name: round(statistics.median(one / mine for one, mine in zip(taken, rounds["buckler"], strict=True)), 2)
        for name, taken in rounds.items()
        if name.startswith("DataLoader")
    }
    return {
        "rows a second": rows,
        "ratios": times,
        "ratio": min(times.values()),
        "rounds": ROUNDS,
        "steps": steps,
        "batch": BATCH,
    }


def subject_of(data: str, rows: int) -> Subject:
    """Rows to pre-train on and to be used downstream, rows to measure on, and the network."""
    if data == "digits":
        return replace(demo("digits"), net=None)
    train, test = raw(fashion_mnist(True), rows), raw(fashion_mnist(False))
    return Subject("Fashion-MNIST", nn.Flatten(), test, train=train, body=encoder, limits=demo("digits").limits)


def asked(cases: Mapping[str, Case], subject: Subject, seeds: Sequence[int], part: str, folder: str) -> None:
    """Every case with every seed, written down after each: every estimate, and its mean over the seeds so far."""
    for name, (path, knobs, words) in cases.items():
        found, seconds, status = defaultdict[str, list[Any]](list), list[float](), list[str]()
        for seed in seeds:
            method = partial(find(path), **knobs) if knobs else find(path)
            trial = evaluate(method, subject, seed=seed, keep=folder, **words)
            seconds.append(round(trial.cost.seconds, 1))
            status.append(trial.status if not trial.reason else f"{trial.status}: {trial.reason}")
            for key, estimate in trial.estimates.items():
                found[key].append([round(value, 4) for value in (estimate.value, estimate.low, estimate.high)])
            if "share_paid" in trial.evidence:  # counted, not estimated
                found["share_paid"].append([round(float(trial.evidence["share_paid"][-1]), 4)] * 3)
            means = {key: round(statistics.fmean(one[0] for one in values), 4) for key, values in found.items()}
            mine = {
                "seeds": list(seeds)[: len(seconds)],
                "status": status,
                "seconds": seconds,
                "mean": means,
                "estimates": found,
            }
            keep(RESULTS, {part: kept(RESULTS).get(part, {}) | {name: mine}}, NOTE)


def detection(subject: Subject, seeds: Sequence[int], folder: str) -> dict[str, Any]:
    """DECREE's score of clean encoders of every seed, and of the same with a backdoor; and how they are told apart."""
    scores, flags, obeyed = [list[float](), list[float]()], [0, 0], list[float]()
    for seed in seeds:
        trial = evaluate(find("encoders/decree"), subject, seed=seed, keep=folder, rows=500)
        obeyed.append(round(trial.estimates["success"].value, 4))
        for index, name in enumerate(("", "planted_")):
            scores[index].append(round(float(trial.evidence[f"{name}score"].max()), 4))
            flags[index] += bool(trial.evidence[f"{name}flagged"].any())
    told = torch.tensor([[score, index] for index in (0, 1) for score in scores[index]])
    area = stats.area(told, "scores")
    return {
        "case": f"{subject.name}, seeds {seeds[0]} to {seeds[-1]}",
        "clean": scores[0],
        "backdoored": scores[1],
        "backdoor obeyed": obeyed,
        "flagged clean": flags[0],
        "flagged backdoored": flags[1],
        "area": [round(value, 4) for value in (area.value, area.low, area.high)],
    }


def audited() -> dict[str, Any]:
    """The encoder plan on the digits demo, from nothing: the table of the ten problems, and how long it took."""
    with TemporaryDirectory() as folder:
        began = time.perf_counter()
        report = audit({"demo": "digits"}, "encoder", Path(folder) / "run", engine="loky", workers=2)
        seconds = round(time.perf_counter() - began)
    grid = next(finding.grid for finding in report.findings if finding.id == "encoders/ten")
    states = {finding.id: f"{finding.state}, {finding.severity}" for finding in report.findings}
    missing = [f"{one.what}: {one.why}" for one in report.not_measured]
    return {
        "seconds": seconds,
        "jobs": 2,
        "trials": len(report.trials),
        "grid": grid,
        "findings": states,
        "not measured": missing,
    }


LONG = {"encoder_steps": 1000}
PRETRAINING: dict[str, Case] = {
    path.removeprefix("encoders/"): (path, {}, {"rows": 2000, **LONG})
    for path in ("encoders/simclr", "encoders/moco", "encoders/simsiam")
}
ATTACKS: dict[str, Case] = {
    "bad_encoder": ("encoders/bad_encoder", {"epochs": 12}, {"rows": 2000, **LONG}),
    "stolen_encoder": ("encoders/stolen_encoder", {}, {"rows": 2000, **LONG, "queries": (300, 1000)}),
    "adversarial_contrastive": ("encoders/adversarial_contrastive", {"radius": 8 / 255}, {"rows": 500, **LONG}),
    "drupe": ("encoders/drupe", {"epochs": 12}, {"rows": 2000, **LONG}),
    "dp_rotation at epsilon 8": ("encoders/dp_rotation", {"epsilon": 8.0}, {"rows": 2000, **LONG}),
    "poisoned_encoder at 1 %": ("encoders/poisoned_encoder", {}, {"rows": 2000, **LONG, "share": Share(0.01)}),
}
OVERTRAINED: dict[str, Case] = {
    "encoder_mi, 100 rows, 3000 steps": (
        "encoders/encoder_mi",
        {},
        {"rows": 400, "train_rows": 200, "encoder_steps": 3000},
    ),
    "dp_rotation at epsilon 8, 100 rows, 3000 steps": (
        "encoders/dp_rotation",
        {"epsilon": 8.0, "epochs": 200},
        {"rows": 400, "train_rows": 200, "encoder_steps": 3000},
    ),
    "data_tracing, 100 rows, 3000 steps": (
        "encoders/data_tracing",
        {},
        {"rows": 400, "train_rows": 200, "encoder_steps": 3000},
    ),
}
REPAIRS: dict[str, Case] = {
    name: (f"encoders/{name}", {"epochs": 200}, {"rows": 500}) for name in ("continued_pretraining", "fine_pruning")
}
TOKENS: dict[str, Case] = {
    "sponge, vision transformer": (
        "encoders/sponge",
        {"steps": 20},
        {"rows": 500, "encoder_steps": 500, "pretraining": partial(simclr, rate=0.03), "ball": Ball("linf", 0.1)},
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", default=PARTS)
    parser.add_argument("--cases", nargs="+", help="only these of a part")
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--keep", default="", help="a folder in which encoders are kept from one run to the next")
    arguments = parser.parse_args()
    parts, cases = arguments.parts.split(","), arguments.cases or []
    for named, known in ((parts, PARTS.split(",")), (cases, [*PRETRAINING, *ATTACKS, *OVERTRAINED, *REPAIRS, *TOKENS])):
        if strange := [name for name in named if name not in known]:
            parser.error(f"expected some of: {'; '.join(known)}, got {'; '.join(strange)}")
    data, seeds = subject_of("fashion-mnist", arguments.rows), range(arguments.seeds)
    small = subject_of("digits", 0)
    with TemporaryDirectory() as own:
        folder = arguments.keep or own
        for part in parts:
            if part == "throughput":
                keep(RESULTS, {part: throughput(cast(Rows, data.train))}, NOTE)
            elif part == "audit":
                keep(RESULTS, {part: audited()}, NOTE)
            elif part == "detection":
                keep(RESULTS, {part: detection(small, range(30, 40), folder)}, NOTE)
            else:
                every, subject = {
                    "worth": (PRETRAINING, data),
                    "attacks": (ATTACKS, data),
                    "overtrained": (OVERTRAINED, small),
                    "repairs": (REPAIRS, small),
                    "tokens": (TOKENS, replace(data, body=partial(VisionTransformer, side=28, patch=4))),
                }[part]
                some = {name: case for name, case in every.items() if not cases or name in cases}
                asked(some, subject, seeds, part, folder)


if __name__ == "__main__":
    main()
