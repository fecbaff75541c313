"""Membership inference: the shadow farm against a plain loop, and the variance rules of LiRA.

    python benchmarks/privacy.py [--parts farm,lira,dp] [--shadows 16] [--peer attacks.py]

`farm` trains the same shadow models by a loop as it is usually written (a `DataLoader`, an optimizer, one model after
the other, torch's own number of threads) and by every engine of the library. Accuracies of the shadows, on the rows
that they hold and on test rows, stand beside the times, each the median of three rounds in turn. `lira` scores the same
eight targets with the same shadows by every variance rule; what is found at 0.1 % of false alarms is over all of their
rows together; with `--peer`, the file `attacks.py` of https://github.com/privacytrustlab/ml_privacy_meter, so does its
RMIA. `dp` is the time of a step of DP-SGD, drawing of rows included, beside that of each mode of Opacus on
batches drawn beforehand. Each part is written to benchmarks/results/privacy.json when it ends.
"""

from __future__ import annotations

import argparse
import importlib.util
import logging
import statistics
import time
import warnings
from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from _record import keep
from buckler import stats
from buckler.data import Rows, as_tensors, digits, fashion_mnist
from buckler.nets import ResNet, SmallCNN
from buckler.privacy._farm import Engine, Lesson, farm, halves
from buckler.privacy._shadows import Shadows
from buckler.privacy.lira import lira
from buckler.privacy.loss_threshold import loss_threshold
from buckler.privacy.rmia import rmia
from buckler.private import Private
from buckler.target import Oracle
from buckler.train import cross_entropy, fit, triangle

RESULTS = Path(__file__).parent / "results" / "privacy.json"
NOTE = "shared cores: ratios within a case count, not seconds"
TARGETS, ROUNDS = 8, 3


ENGINES: tuple[Engine, ...] = ("sequential", "stacked", "processes")
MODES = ("hooks", "functorch", "ew", "ghost")


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
        ways: dict[str, Callable[[], list[Tensor]]] = {"plain loop": partial(plain, lesson, data, held, other)}
        for engine in ENGINES:
            ways[engine] = lambda lesson=lesson, e=every, w=wide, how=engine: list(
                farm(lesson, e, w, engine=how).answers
            )
        case: dict[str, Any] = {"rows": len(data[1]), "epochs": epochs, "batch": batch, "shadows": shadows}
        seconds: dict[str, list[float]] = defaultdict(list)
        for _ in range(ROUNDS):
            for way, run in ways.items():
                began = time.perf_counter()
                answers = run()
                seconds[way].append(time.perf_counter() - began)
                case[way] = {"seconds": statistics.median(seconds[way]), **accuracies(answers, every[1], held)}
        best = min(ENGINES, key=lambda engine: case[engine]["seconds"])
        case["best engine"], case["ratio"] = best, case["plain loop"]["seconds"] / case[best]["seconds"]
        found[name] = case
        keep(RESULTS, {"farm": found}, NOTE)
    return found


def listed(answers: Tensor) -> Oracle:
    """Answers row i, which holds its number."""
    return Oracle(lambda x: answers[x[:, 0].long(), 0].exp(), batch=1 << 30)


def rules(shadows: int, peer: Path | None) -> dict[str, Any]:
    """What every rule finds with the same shadows, over all rows of all targets."""
    data, other = fashion(True, 4000), fashion(False, 1000)
    many, y = len(data[1]), data[1]
    x = torch.arange(float(many))[:, None]
    pairs = torch.cat([halves(many, 2, 1000 + target) for target in range(TARGETS)])
    held = halves(many, shadows)
    who = torch.cat([held, pairs])
    wide = torch.cat([who, torch.zeros(len(who), len(other[1]), dtype=torch.bool)], 1)
    every = torch.cat([data[0], other[0]]), torch.cat([y, other[1]])
    began = time.perf_counter()
    made = farm(Lesson(flat, epochs=40, batch=64, rate=0.05), every, wide, engine="stacked")
    answers = [one[:many] for one in made.answers]
    known, inside = Shadows(held, answers[:shadows], y), pairs[::2]
    scores: dict[str, Callable[[Oracle], Tensor]] = {
        "loss threshold": lambda oracle: loss_threshold(oracle, x, y),
        "rmia online": lambda oracle: rmia(oracle, x, y, shadows=known),
        "rmia offline": lambda oracle: rmia(oracle, x, y, shadows=known, online=False),
    }
    for online in (True, False):
        for variance in ("fixed", "per-example", "shrunk"):
            name = f"lira {'online' if online else 'offline'}, {variance}"
            scores[name] = partial(lira, x=x, y=y, shadows=known, online=online, variance=variance)
    found: dict[str, Any] = {
        "case": f"Fashion-MNIST, 4,000 rows, two linear layers, 40 epochs, {TARGETS} targets, {shadows} shadows",
        "training_seconds": time.perf_counter() - began,
        "train_accuracy": accuracies(answers, y, who)["train_accuracy"],
    }
    ranked = {name: [score(listed(one)) for one in answers[shadows::2]] for name, score in scores.items()}
    if peer is not None:
        ranked["ml_privacy_meter, rmia"] = theirs(peer, made.answers, every[1], wide, shadows)
    for name, each in ranked.items():
        pooled = torch.cat([torch.stack([one, mine.double()], 1) for one, mine in zip(each, inside, strict=True)])
        found[name] = {
            "auc": stats.area(pooled, "ranked").record(),
            "found_at_0.01": stats.found(pooled, "ranked").record(),
            "found_at_0.001": stats.found(pooled, "ranked", alarms=0.001).record(),
        }
    found["null"] = "rows of one target are not independent of those of another: intervals are about, not exact"
    return found


def theirs(peer: Path, answers: Sequence[Tensor], y: Tensor, wide: Tensor, shadows: int) -> list[Tensor]:
    """The scores of ml_privacy_meter's RMIA, `attacks.py` of its repository, for each target: its `offline_a` is tuned
    on the model of the other half, as it does it, and the rows that nobody holds are its population."""
    spec = importlib.util.spec_from_file_location("attacks", peer)
    if spec is None or spec.loader is None:
        raise SystemExit(f"expected --peer to name attacks.py of ml_privacy_meter, got {peer}")
    module: Any = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    signals = torch.stack([one[torch.arange(len(y)), 0, y].exp() for one in answers], 1).double().numpy()
    member = wide.T.numpy()
    mine, population = ~(~wide.any(0)).numpy(), (~wide.any(0)).numpy()
    scores: list[Tensor] = []
    for target in range(shadows, len(answers), 2):
        columns = [target, target + 1, *range(shadows)]
        a, b, held = signals[mine][:, columns], signals[population][:, columns], member[mine][:, columns]
        offline, *_ = module.tune_offline_a(0, a, b, held, logging.getLogger("peer"))
        scores.append(torch.from_numpy(module.run_rmia(0, a, b, held, shadows // 2, offline)))
    return scores


def private(steps: int = 20, batch: int = 256) -> dict[str, Any]:
    """Seconds of a step of a small CNN on Fashion-MNIST: without privacy, by `dp_sgd`, by each mode of Opacus."""
    from opacus import PrivacyEngine

    data = fashion(True, 8000)
    net = partial(SmallCNN, side=28, width=16)
    draw = torch.Generator().manual_seed(0)
    drawn = [(torch.rand(len(data[1]), generator=draw) < batch / len(data[1])).nonzero()[:, 0] for _ in range(steps)]
    batches = [(data[0][rows], data[1][rows]) for rows in drawn]
    epochs = steps * batch / len(data[1])

    def ours(loss: Any) -> None:
        fit(net(), data, loss=loss, epochs=epochs, batch=batch, rate=0.1, decay=0.0)

    def theirs(mode: str) -> None:
        model = net()
        made: Any = PrivacyEngine().make_private(
            module=model,
            optimizer=torch.optim.SGD(model.parameters(), 0.1, momentum=0.9, nesterov=True),
            criterion=nn.CrossEntropyLoss(),
            data_loader=DataLoader(TensorDataset(*data), batch_size=batch),
            noise_multiplier=1.1,
            max_grad_norm=1.0,
            grad_sample_mode=mode,
        )
        model, descent, criterion = made[0], made[1], made[2] if mode == "ghost" else nn.CrossEntropyLoss()
        model.train()
        for x, y in batches:
            descent.zero_grad()
            criterion(model(x), y).backward()
            descent.step()

    ways: dict[str, Callable[[], None]] = {
        "without privacy": partial(ours, cross_entropy),
        "dp_sgd": partial(ours, Private(1.0, 1.1)),
        **{f"opacus, {mode}": partial(theirs, mode) for mode in MODES},
    }
    seconds: dict[str, list[float]] = defaultdict(list)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for turn in range(ROUNDS + 1):
            for way, run in ways.items():
                began = time.perf_counter()
                run()
                if turn:  # the first warms up
                    seconds[way].append((time.perf_counter() - began) / steps)
    found: dict[str, Any] = {way: statistics.median(those) for way, those in seconds.items()}
    best = min((f"opacus, {mode}" for mode in MODES), key=found.__getitem__)
    case = (
        f"Fashion-MNIST, small CNN of width 16, batches of {batch} on average, {steps} steps, median of {ROUNDS} rounds"
    )
    return {"case": case, "seconds": found, "best mode": best, "ratio": found[best] / found["dp_sgd"]}


if __name__ == "__main__":
    asked = argparse.ArgumentParser(description="Membership inference and differential privacy: speed and strength.")
    asked.add_argument("--parts", default="farm,lira,dp")
    asked.add_argument("--shadows", type=int, default=16)
    asked.add_argument("--peer", type=Path)
    given = asked.parse_args()
    if "dp" in given.parts:
        keep(RESULTS, {"dp": private()}, NOTE)
    if "lira" in given.parts:
        keep(RESULTS, {"lira": rules(given.shadows, given.peer)}, NOTE)
    if "farm" in given.parts:
        keep(RESULTS, {"farm": farms(given.shadows)}, NOTE)
