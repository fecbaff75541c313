"""Ten models each, clean and backdoored: which classes the inspectors flag, which rows the sifters; resumed.

    python benchmarks/detection.py [--attacks clean,badnets,blended] [--share 0.1] [--seeds 10,11,...,19] [--minutes 30]

Data, network and undefended training are those of benchmarks/poisoning.py, with other seeds than those that anything
was tuned on. Each model is a trial in benchmarks/results/detection-fashion-mnist.json when it ends; the anomaly index
of `neural_cleanse` is recorded under both of its scales, from one search.
"""

from __future__ import annotations

import argparse
import json
import time
from typing import Any

import torch
from torch import Tensor

from buckler.poisoning._invert import HALF, outlying
from buckler.poisoning._measure import isolation
from buckler.poisoning.activation_clustering import activation_clustering
from buckler.poisoning.neural_cleanse import TINY, neural_cleanse
from buckler.poisoning.spectral import spectral
from poisoning import RESULTS, plain, rows, touched

SIFTERS: dict[str, Any] = {
    "spectral": spectral,
    "spectral, each class": lambda model, data: spectral(model, data, each_class=True),
    "activation_clustering": activation_clustering,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--attacks", default="clean,badnets,blended")
    parser.add_argument("--share", type=float, default=0.1)
    parser.add_argument("--seeds", default=",".join(map(str, range(10, 20))))
    parser.add_argument("--minutes", type=float, default=30, help="start no further model after this time")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    path = RESULTS / "detection-fashion-mnist.json"
    trials: list[dict[str, Any]] = json.loads(path.read_text("utf8"))["trials"] if path.is_file() else []
    done = {(trial["attack"], trial["share"], trial["seed"]) for trial in trials}
    end = time.monotonic() + 60 * options.minutes
    for seed in map(int, options.seeds.split(",")):
        for attack in options.attacks.split(","):
            share = 0.0 if attack == "clean" else options.share
            if (attack, share, seed) in done or time.monotonic() > end:
                continue
            trials.append({"attack": attack, "share": share, "seed": seed, **detected(attack, share, seed)})
            path.write_text(json.dumps({"trials": trials}, indent=1) + "\n", "utf8")
            print(trials[-1], flush=True)


def detected(attack: str, share: float, seed: int) -> dict[str, Any]:
    model, poisoned = plain(attack, share, seed, full=False), touched(attack, share, seed, full=False)
    clean = rows(full=False, seed=seed)[2]
    began = time.perf_counter()
    found = neural_cleanse(model, clean, scale="plain", seed=seed)
    seconds = time.perf_counter() - began
    size = found.mask.flatten(1).sum(1)
    indices = {"plain": outlying(size), "log": outlying(size.clamp_min(TINY).log(), least=HALF)}
    if not torch.allclose(indices["plain"], found.score, atol=1e-3):  # a class without a trigger has no mask to sum
        indices["log"] = neural_cleanse(model, clean, scale="log", seed=seed).score
        indices["plain"] = found.score
    sifted: dict[str, Any] = {}
    for name, sift in SIFTERS.items():
        numbers = isolation(sift(model, poisoned.seen), poisoned if attack != "clean" else None)[1]
        sifted[name] = {key: round(estimate.value, 4) for key, estimate in numbers.items() if estimate.n}
    return {
        "mask_sizes": rounded(size),
        "index": {scale: rounded(index) for scale, index in indices.items()},
        "flagged": {scale: (index > 2).nonzero().flatten().tolist() for scale, index in indices.items()},
        "neural_cleanse_seconds": round(seconds, 1),
        "sifted": sifted,
    }


def rounded(values: Tensor) -> list[float]:
    return [round(value, 3) for value in values.tolist()]


if __name__ == "__main__":
    main()
