"""Membership inference: the shadow farm against a plain loop, and the variance rules of LiRA.

    python benchmarks/privacy.py [--parts farm,lira] [--threads 1] [--shadows 16]

`farm` trains the same shadow models three ways: by a loop as it is usually written (a `DataLoader`, an optimizer, one
model after the other), by the one loop of the library one after the other, and stacked. Accuracies of the shadows, on
the rows that they hold and on test rows, stand beside the times, each the least of two rounds in turn. `lira` scores
the same eight targets with the same shadows by every variance rule; what is found at 0.1 % of false alarms is over all
of their rows together. Each part is written to benchmarks/results/privacy.json when it ends.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from collections.abc import Callable
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from buckler import stats
from buckler.data import Rows, as_tensors, digits, fashion_mnist
from buckler.nets import ResNet, SmallCNN
from buckler.privacy._farm import Lesson, farm, halves
from buckler.privacy._shadows import Shadows
from buckler.privacy.lira import lira
from buckler.privacy.loss_threshold import loss_threshold
from buckler.privacy.rmia import rmia
from buckler.target import Oracle
from buckler.train import triangle

RESULTS = Path(__file__).parent / "results" / "privacy.json"
TARGETS, ROUNDS = 8, 2


def flat(sides: int = 784, width: int = 64) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(sides, width), nn.ReLU(), nn.Linear(width, 10))


def fashion(train: bool, rows: int) -> Rows:
    return as_tensors(fashion_mnist(train), rows)


def digit_rows(train: bool, rows: int) -> Rows:
    return as_tensors(digits(train), min(rows, 1196 if train else 600))


CASES: dict[str, tuple[Callable[[], nn.Module], Callable[[bool, int], Rows], int, float, int]] = {
    # the network, the rows and how many, epochs, batch
    "digits, SmallCNN of width 8": (partial(SmallCNN, width=8), digit_rows, 1196, 10, 32),
    "digits, SmallCNN of width 32 (the demo)": (SmallCNN, digit_rows, 1196, 10, 64),
    "digits, two linear layers": (partial(flat, 64), digit_rows, 1196, 20, 32),
    "Fashion-MNIST, SmallCNN of width 8": (partial(SmallCNN, side=28, width=8), fashion, 1000, 4, 64),
    "Fashion-MNIST, ResNet-8 of width 8, stride 2": (partial(ResNet, width=8, stride=2), fashion, 1000, 4, 64),
}


def plain(lesson: Lesson, data: Rows, held: Tensor, other: Rows) -> list[Tensor]:
    """One model after the other, as it is usually written: their answers to all rows."""
    answers: list[Tensor] = []
    for index, mine in enumerate(held):
        torch.manual_seed(index)
        model = lesson.net()
        loader = DataLoader(TensorDataset(data[0][mine], data[1][mine]), batch_size=lesson.batch, shuffle=True)
        descent = torch.optim.SGD(
            model.parameters(), lesson.rate, momentum=0.9, weight_decay=lesson.decay, nesterov=True
        )
        total = int(lesson.epochs) * len(loader)
        schedule = torch.optim.lr_scheduler.LambdaLR(descent, lambda step, n=total: triangle(1.0)((step + 1) / (n + 1)))
        model.train()
        for _ in range(int(lesson.epochs)):
            for x, y in loader:
                descent.zero_grad()
                F.cross_entropy(model(x), y).backward()
                descent.step()
                schedule.step()
        model.eval()
        with torch.no_grad():
            answers.append(model(torch.cat([data[0], other[0]])).log_softmax(1)[:, None])
    return answers


def accuracies(answers: list[Tensor], labels: Tensor, held: Tensor) -> dict[str, float]:
    right = torch.stack([one[:, 0].argmax(1) == labels for one in answers])
    many = held.shape[1]
    inside = float(right[:, :many][held].double().mean())
    return {"train_accuracy": inside, "test_accuracy": float(right[:, many:].double().mean())}


def farms(shadows: int) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, (net, rows, many, epochs, batch) in CASES.items():
        data, other = rows(True, many), rows(False, 500)
        every = torch.cat([data[0], other[0]]), torch.cat([data[1], other[1]])
        held = halves(len(data[1]), shadows)
        wide = torch.cat([held, torch.zeros(shadows, len(other[1]), dtype=torch.bool)], 1)
        lesson = Lesson(net, epochs=epochs, batch=batch, rate=0.05)
        ways: dict[str, Callable[[], list[Tensor]]] = {
            "plain loop": partial(plain, lesson, data, held, other),
            "one by one": lambda lesson=lesson, e=every, w=wide: list(farm(lesson, e, w, engine="sequential").answers),
            "stacked": lambda lesson=lesson, e=every, w=wide: list(farm(lesson, e, w, engine="stacked").answers),
        }
        case: dict[str, Any] = {"rows": len(data[1]), "epochs": epochs, "batch": batch, "shadows": shadows}
        for _ in range(ROUNDS):
            for way, run in ways.items():
                began = time.perf_counter()
                answers = run()
                seconds = min(time.perf_counter() - began, case.get(way, {"seconds": float("inf")})["seconds"])
                case[way] = {"seconds": seconds, **accuracies(answers, every[1], held)}
        case["stacked against the plain loop"] = case["plain loop"]["seconds"] / case["stacked"]["seconds"]
        found[name] = case
        keep({"farm": found})
    return found


def listed(answers: Tensor) -> Oracle:
    """Answers row i, which holds its number."""
    return Oracle(lambda x: answers[x[:, 0].long(), 0].exp(), batch=1 << 30)


def rules(shadows: int) -> dict[str, Any]:
    """What every rule finds with the same shadows, over all rows of all targets."""
    data = fashion(True, 4000)
    x, y = torch.arange(float(len(data[1])))[:, None], data[1]
    inside = torch.stack([halves(len(y), 2, 1000 + target)[0] for target in range(TARGETS)])
    held = halves(len(y), shadows)
    lesson = Lesson(flat, epochs=40, batch=64, rate=0.05)
    began = time.perf_counter()
    made = farm(lesson, data, torch.cat([held, inside]), engine="stacked")
    known = Shadows(held, made.answers[:shadows], y)
    scores: dict[str, Callable[[Oracle], Tensor]] = {
        "loss threshold": lambda oracle: loss_threshold(oracle, x, y),
        "rmia": lambda oracle: rmia(oracle, x, y, shadows=known),
    }
    for online in (True, False):
        for variance in ("fixed", "per-example", "shrunk"):
            name = f"lira {'online' if online else 'offline'}, {variance}"
            scores[name] = partial(lira, x=x, y=y, shadows=known, online=online, variance=variance)
    found: dict[str, Any] = {
        "case": f"Fashion-MNIST, 4,000 rows, two linear layers, 40 epochs, {TARGETS} targets, {shadows} shadows",
        "training_seconds": time.perf_counter() - began,
        "train_accuracy": accuracies([*made.answers], y, torch.cat([held, inside]))["train_accuracy"],
    }
    for name, score in scores.items():
        ranked = torch.cat(
            [
                torch.stack([score(listed(answers)), mine.double()], 1)
                for answers, mine in zip(made.answers[shadows:], inside, strict=True)
            ]
        )
        found[name] = {
            "auc": stats.area(ranked, "ranked").record(),
            "found_at_0.01": stats.found(ranked, "ranked").record(),
            "found_at_0.001": stats.found(ranked, "ranked", alarms=0.001).record(),
        }
    found["null"] = "rows of one target are not independent of those of another: intervals are about, not exact"
    return found


def keep(part: dict[str, Any]) -> None:
    record: dict[str, Any] = json.loads(RESULTS.read_text("utf8")) if RESULTS.exists() else {}
    record["machine"] = {
        "cores": os.cpu_count(),
        "processor": platform.machine(),
        "threads": torch.get_num_threads(),
        "load": round(os.getloadavg()[0], 1),
        "date": date.today().isoformat(),
        "torch": torch.__version__,
        "note": "shared cores, another benchmark was running: ratios within a case count, not seconds",
    }
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps({**record, **part}, indent=1), "utf8")


if __name__ == "__main__":
    asked = argparse.ArgumentParser(description="Membership inference: speed and strength.")
    asked.add_argument("--parts", default="farm,lira")
    asked.add_argument("--threads", type=int, default=1)
    asked.add_argument("--shadows", type=int, default=16)
    given = asked.parse_args()
    torch.set_num_threads(given.threads)
    if "lira" in given.parts:
        keep({"lira": rules(given.shadows)})
    if "farm" in given.parts:
        keep({"farm": farms(given.shadows)})
