"""Training on poisoned rows: Buckler's loop and schedule against the field's usual recipe, to the same two numbers.

    python benchmarks/poisoning_speed.py [--attack badnets] [--share 0.1] [--rounds 3] [--threads N]

The peer is BackdoorBench's training of an attack (https://github.com/SCLBD/BackdoorBench: 100 epochs, SGD of 0.01 with
a cosine schedule, momentum 0.9, decay 5e-4, batches of 128, clean and poisoned test rows answered after every epoch)
written as a plain PyTorch `DataLoader` loop on the same network and rows. Both sides run in one process, in turn, each
round with a seed of its own; `peer, no tests` is the same loop without the answers after every epoch. The ratio counts
only if clean accuracy and attack success are within two points. Writes benchmarks/results/poisoning-speed.json.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from buckler.data import Poisoned, Rows
from buckler.poisoning._measure import outcome
from buckler.train import fit, started
from poisoning import EPOCHS, RESULTS, network, rows, touched

PEER_EPOCHS = 100


class Images(Dataset[tuple[Tensor, Tensor]]):
    """Rows as most code keeps them: one by one, made floats as they are read."""

    def __init__(self, data: Rows) -> None:
        self.x, self.y = data

    def __len__(self) -> int:
        return len(self.y)

    def __getitem__(self, row: int) -> tuple[Tensor, Tensor]:
        return self.x[row].float() / 255, self.y[row]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--attack", default="badnets")
    parser.add_argument("--share", type=float, default=0.1)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    sides: dict[str, list[dict[str, float]]] = {"buckler": [], "peer": [], "peer, no tests": []}
    for seed in range(options.rounds):
        poisoned, test = touched(options.attack, options.share, seed, full=False), rows(full=False, seed=seed)[1]
        for side, results in sides.items():
            began = time.perf_counter()
            if side == "buckler":
                model = fit(started(network(full=False), seed), poisoned.seen, epochs=EPOCHS, rate=0.2, seed=seed)
            else:
                model = usual(poisoned, test, seed, tests=side == "peer")
            seconds = time.perf_counter() - began
            flags = outcome(model, test, poisoned)
            results.append(
                {
                    "seconds": round(seconds, 2),
                    "accuracy": round(float(flags["correct"].float().mean()), 4),
                    "attack_success": round(float(flags["success"].float().mean()), 4),
                }
            )
            print(seed, side, results[-1], flush=True)
        write(options, sides)


def write(options: argparse.Namespace, sides: dict[str, list[dict[str, float]]]) -> None:
    """What is known so far; a run that is stopped leaves the rounds that it ended."""
    record = {
        "attack": options.attack, "share": options.share, "threads": options.threads, "cores": os.cpu_count(),
        "torch": torch.__version__, "rounds": sides, "median": {side: median(found) for side, found in sides.items()},
    }  # fmt: skip
    own = record["median"]["buckler"]
    record["ratio"] = {side: round(found["seconds"] / own["seconds"], 2) for side, found in record["median"].items()}
    (RESULTS / "poisoning-speed.json").write_text(json.dumps(record, indent=1) + "\n", "utf8")
    print(record["median"], record["ratio"], flush=True)


def usual(poisoned: Poisoned, test: Rows, seed: int, *, tests: bool) -> nn.Module:
    """The peer's loop."""
    model = started(network(full=False), seed).train()
    batches = DataLoader(Images(poisoned.seen), batch_size=128, shuffle=True)
    descent = torch.optim.SGD(model.parameters(), 0.01, momentum=0.9, weight_decay=5e-4)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(descent, PEER_EPOCHS)
    for _ in range(PEER_EPOCHS):
        for x, y in batches:
            descent.zero_grad()
            F.cross_entropy(model(x), y).backward()
            descent.step()
        schedule.step()
        if tests:
            outcome(model.eval(), test, poisoned)
            model.train()
    return model.eval()


def median(found: list[dict[str, Any]]) -> dict[str, float]:
    return {name: statistics.median(one[name] for one in found) for name in found[0]}


if __name__ == "__main__":
    main()
