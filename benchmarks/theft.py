"""Model extraction: what so many queries buy, by each thief and each detail of answers, and what guards change.

    python benchmarks/theft.py [--parts thieves,details,guards] [--seeds 2] [--threads 1]

The victim is a small CNN taught 6,000 rows of Fashion-MNIST; a thief's pool are 5,000 of the test rows without labels,
and copies are measured on 1,000 others. Every copy is made with `--seeds` seeds; agreement with the victim, and
accuracy, are over their rows together. What is done is kept in benchmarks/results/theft.json as it ends, and is not
done again.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from _record import keep, kept
from buckler import stats
from buckler.catalog import find
from buckler.data import as_tensors, fashion_mnist
from buckler.method import plain
from buckler.nets import SmallCNN
from buckler.subject import Subject
from buckler.theft.evaluate import evaluate
from buckler.train import fit, started
from buckler.trial import Trial

RESULTS = Path(__file__).parent / "results" / "theft.json"
NET = partial(SmallCNN, side=28, width=8)
QUERIES = (100, 300, 1000)
LESS = {"epochs": 60}
"""Epochs of the thieves that have them: at 1,000 rows and batches of 32 these are 1,920 steps."""
NULL = "rows of one seed's copy are not independent of another's: intervals are about, not exact"

THIEVES: dict[str, Callable[..., nn.Module]] = {
    "knockoff": partial(find("theft/knockoff"), **LESS),
    "knockoff, adaptive": partial(find("theft/knockoff"), strategy="adaptive", **LESS),
    "active_thief, k-center": partial(find("theft/active_thief"), strategy="k-center", rounds=5, **LESS),
    "copycat": partial(find("theft/copycat"), **LESS),
    "jbda": partial(find("theft/jbda"), start=100),
    "jbda, towards random": partial(find("theft/jbda"), start=100, towards="random"),
    "equation_solving": find("theft/equation_solving"),
}
DETAILS = ("scores", "digits2", "top3-digits2", "top1-digits2", "labels")
GUARDS: dict[str, Callable[..., nn.Module]] = {
    "rounding, 1 digit": find("theft/rounding"),
    "top_k, 1 class": find("theft/top_k"),
    "reverse_sigmoid": find("theft/reverse_sigmoid"),
    "prediction_poisoning": find("theft/prediction_poisoning"),
    "prediction_poisoning, labels kept": partial(find("theft/prediction_poisoning"), keep_label=True),
}


def subject() -> Subject:
    taught = as_tensors(fashion_mnist(True), 6000)
    victim = fit(started(NET, 0), taught, epochs=8, batch=64, rate=0.05)
    return Subject("Fashion-MNIST, small CNN", victim, as_tensors(fashion_mnist(False)), net=NET)


def over(trials: list[Trial]) -> dict[str, Any]:
    """Every share over the rows of all seeds together, and every difference and mean."""
    joined = {name: torch.cat([t.evidence[name] for t in trials]) for name in trials[0].evidence}
    found = {name: stats.recompute(e, joined).record() for name, e in trials[0].estimates.items()}
    checks = [[c.says for c in t.checks if not c.passed] for t in trials]
    seconds = sum(t.cost.seconds for t in trials)
    return {**found, "seconds": seconds, "status": [t.status for t in trials], "failed checks": checks}


def measured(name: str, seeds: int, asked: dict[str, Any], method: Callable[..., nn.Module], of: Subject) -> None:
    runs: dict[str, Any] = kept(RESULTS).get("runs", {})
    if name in runs:
        return
    began = time.perf_counter()
    trials = [evaluate(method, of, rows=1000, seed=seed, **asked) for seed in range(seeds)]
    runs[name] = {**over(trials), "seeds": seeds, "asked": {key: plain(value) for key, value in asked.items()}}
    keep(RESULTS, {"runs": runs, "null": NULL}, "shared cores: agreement counts, not seconds")
    print(name, f"{trials[0].estimates['fidelity']}, {time.perf_counter() - began:.0f} s", flush=True)


if __name__ == "__main__":
    words = argparse.ArgumentParser(description="Model extraction: queries against agreement.")
    words.add_argument("--parts", default="thieves,details,guards")
    words.add_argument("--seeds", type=int, default=2)
    words.add_argument("--threads", type=int, default=1)
    given = words.parse_args()
    torch.set_num_threads(given.threads)
    of = subject()
    if "thieves" in given.parts:
        for name, thief in THIEVES.items():
            measured(name, given.seeds, {"queries": QUERIES}, thief, of)
    if "details" in given.parts:
        for detail in DETAILS:
            measured(
                f"knockoff of {detail}", given.seeds, {"queries": (1000,), "reveals": detail}, THIEVES["knockoff"], of
            )
        measured("knockoff with noise", given.seeds, {"queries": (1000,), "pool": "noise"}, THIEVES["knockoff"], of)
    if "guards" in given.parts:
        for name, guard in GUARDS.items():
            measured(name, given.seeds, {"queries": (1000,), "attack": THIEVES["knockoff"]}, guard, of)
