"""Attacks against defences on Fashion-MNIST, a trial at a time, resumed where it stopped, accumulated over days.

    python benchmarks/poisoning.py [--attacks badnets,blended,...] [--defences none,dlp,...] [--shares 0.05,0.1]
                                   [--seeds 0,1,2] [--minutes 30] [--full]

The network is a ResNet-8 whose first convolution has stride 2, on 8,000 training rows; 2,000 test rows are measured and
500 others are the clean rows of a repair. `--full` takes all 60,000 rows and the ResNet-8 of stride 1. Every attack is
trained undefended once per share and seed (`none`), by SGD over 12 epochs; defences run with the settings in DEFENCES,
which are their authors' unless a comment says otherwise. Each trial is written to
benchmarks/results/poisoning-fashion-mnist.json when it ends, and one that is there is not run again.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from buckler.catalog import find
from buckler.data import Poisoned, Rows, as_tensors, fashion_mnist
from buckler.nets import ResNet
from buckler.poisoning._measure import effectiveness, isolation, outcome
from buckler.threat import Share
from buckler.train import fit, started

RESULTS = Path(__file__).parent / "results"
ATTACKS: dict[str, dict[str, Any]] = {
    "clean": {},
    "badnets": {},
    "blended": {},
    "sig": {},
    "wanet": {"strength": 2.0, "cross_ratio": 0.5},  # as data poisoning alone the published field is too weak
    "label_consistent": {"epochs": 5},
    "adaptive_blend": {},
}
DEFENCES: dict[str, dict[str, Any]] = {
    "none": {},
    "dlp": {},
    "abl": {"epochs": (10, 12, 5), "rate": 0.05},  # the middle stage as long as undefended training
    "cbd": {"epochs": (5, 12)},  # likewise
    "ft_sam": {"epochs": 20},
    "nad": {},
    "fine_tune": {},
    "fine_prune": {},
}
REPAIRS = ("ft_sam", "nad", "fine_tune", "fine_prune", "anp", "ibau", "clp", "rnp")
EPOCHS, ROWS, TEST, CLEAN = 12, 8000, 2000, 500


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--attacks", default=",".join(ATTACKS))
    parser.add_argument("--defences", default="none,dlp")
    parser.add_argument("--shares", default="0.05,0.1,0.01")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--minutes", type=float, default=30, help="start no further trial after this time")
    parser.add_argument("--full", action="store_true", help="all rows and the larger network")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    path = RESULTS / f"poisoning-fashion-mnist{'-full' if options.full else ''}.json"
    record: dict[str, Any] = json.loads(path.read_text("utf8")) if path.is_file() else {"trials": []}
    done = {name_of(trial) for trial in record["trials"]}
    end = time.monotonic() + 60 * options.minutes
    for seed in map(int, options.seeds.split(",")):
        for share in map(float, options.shares.split(",")):
            for attack in options.attacks.split(","):
                for defence in options.defences.split(","):
                    key = (attack, defence, 0.0 if attack == "clean" else share, seed)
                    if key in done or time.monotonic() > end:
                        continue
                    trial = run(*key, full=options.full, undefended=undefended(record, key))
                    record["trials"].append(trial)
                    done.add(key)
                    path.parent.mkdir(exist_ok=True)
                    path.write_text(json.dumps(record, indent=1) + "\n", "utf8")
                    print(trial, flush=True)


def name_of(trial: dict[str, Any]) -> tuple[str, str, float, int]:
    return trial["attack"], trial["defence"], trial["share"], trial["seed"]


def undefended(record: dict[str, Any], key: tuple[str, str, float, int]) -> dict[str, Any] | None:
    wanted = (key[0], "none", *key[2:])
    return next((trial for trial in record["trials"] if name_of(trial) == wanted), None)


def run(
    attack: str, defence: str, share: float, seed: int, *, full: bool, undefended: dict[str, Any] | None
) -> dict[str, Any]:
    """One trial: poison, train or repair, measure."""
    net, (train, test, clean) = network(full), rows(full, seed)
    poisoned = touched(attack, train, share, seed, net)
    started_at = time.perf_counter()
    more: dict[str, float] = {}
    if defence == "none":
        model = plain(net, poisoned.seen, seed)
    elif defence in REPAIRS:
        model = find(f"poisoning/{defence}")(plain(net, poisoned.seen, seed), clean, seed=seed, **DEFENCES[defence])
    else:
        grown = find(f"poisoning/{defence}")(poisoned.seen, net=net, seed=seed, **DEFENCES[defence])
        model = grown.model
        if grown.suspicion is not None:
            numbers = isolation(grown.suspicion, poisoned if bool(poisoned.rows.any()) else None)[1]
            more = {name: round(estimate.value, 4) for name, estimate in numbers.items() if estimate.n}
    seconds = time.perf_counter() - started_at
    found = {name: round(float(flags.float().mean()), 4) for name, flags in outcome(model, test, poisoned).items()}
    trial = {
        "attack": attack, "defence": defence, "share": share, "seed": seed, "accuracy": found["correct"],
        "attack_success": found["success"], "recovered_accuracy": found["recovered"],
        "poisoned_rows": int(poisoned.poison.sum()), "class_rate": round(poisoned.class_rate, 4), **more,
        "seconds": round(seconds, 1), "threads": torch.get_num_threads(),
    }  # fmt: skip
    if undefended is not None and defence != "none" and attack != "clean":
        trial["der"] = round(effectiveness(undefended, trial), 4)
    return trial


def network(full: bool) -> Callable[[], nn.Module]:
    def net() -> nn.Module:
        model = ResNet(stride=1 if full else 2)
        return model.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]

    return net


def rows(full: bool, seed: int) -> tuple[Rows, Rows, Rows]:
    """Training rows drawn by `seed`, the rows that are measured, and the clean rows of a repair."""
    x, y = fashion_mnist(True)
    if not full:
        order = torch.randperm(len(y), generator=torch.Generator().manual_seed(7 + seed))[:ROWS]
        x, y = x[order], y[order]
    held = fashion_mnist(False)
    clean = held[0][-CLEAN:], held[1][-CLEAN:]
    return (x, y), as_tensors(held, 9500 if full else TEST), clean


def touched(attack: str, train: Rows, share: float, seed: int, net: Callable[[], nn.Module]) -> Poisoned:
    """The training rows after the attack; clean ones carry the trigger of badnets, as a control."""
    if attack == "clean":
        control = find("poisoning/badnets")(train, share=Share(0.01), seed=seed)
        nothing = torch.zeros_like(control.rows)
        return Poisoned(*train, nothing, train[1], control.trigger, control.wanted)
    more = {**ATTACKS[attack], **({"net": net} if attack == "label_consistent" else {})}
    return partial(find(f"poisoning/{attack}"), **more)(train, share=Share(share), seed=seed)


def plain(net: Callable[[], nn.Module], data: Rows, seed: int) -> nn.Module:
    return fit(started(net, seed), data, epochs=EPOCHS, batch=128, rate=0.2, seed=seed)


if __name__ == "__main__":
    main()
