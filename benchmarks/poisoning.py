"""Attacks against defences on Fashion-MNIST, a trial at a time, resumed where it stopped, accumulated over days.

    python benchmarks/poisoning.py [--attacks badnets,blended,...] [--defences none,dlp,...] [--shares 0.05,0.1]
                                   [--seeds 0,1,2] [--minutes 30] [--full]
    python benchmarks/poisoning.py --attacks slow_poison,low_frequency,smooth_patch,sharpened_wanet
    python benchmarks/poisoning.py --attacks clean,badnets,wanet --shares 0.05 --seeds 0 --defences \
        dlp:learn,dlp:learn+tune,dlp:learn+unlearn,dlp:mixmatch,...

The network is a ResNet-8 whose first convolution has stride 2, on 8,000 training rows; 2,000 test rows are measured and
500 others are the clean rows of a repair. `--full` takes all 60,000 rows and the ResNet-8 of stride 1. Every attack is
trained undefended once per share and seed (`none`), by SGD over 12 epochs; defences run with the settings in DEFENCES,
which are their authors' unless a comment says otherwise, and `seconds` are theirs alone: a repair's do not count the
training of the model that it repairs. Each trial is written to benchmarks/results/poisoning-fashion-mnist.json when it
ends, and one that is there is not run again.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

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
ADAPTIVE: dict[str, dict[str, Any]] = {  # made against `dlp` by one who has read it
    "slow_poison": {},  # learnt late, against whoever looks at losses
    "low_frequency": {},  # no fine details
    "sharpened_wanet": {"amount": 1.5},  # a warp that makes images finer, not smoother
    "half_sharpened_wanet": {"amount": 0.5},  # neither
    "smooth_patch": {},  # bright, without an edge, and in place of what was there
}
DEFENCES: dict[str, dict[str, Any]] = {
    "none": {},
    "dlp": {},
    "dlp:learn": {"epochs": (6, 0, 0)},  # ablations: the first stage, without the second, without the third, ...
    "dlp:learn+tune": {"epochs": (6, 0, 12)},
    "dlp:learn+unlearn": {"epochs": (6, 5, 0)},
    "dlp:mixmatch": {"semi": "mixmatch"},
    "dlp:fixmatch": {"semi": "fixmatch"},
    "dlp:nothing carried": {"carried": 0.0},
    "dlp:5% suspected": {"suspected": 0.05},
    "dlp:30% suspected": {"suspected": 0.3},
    # Cultivators train about as long as `dlp` or longer: 8,000 rows and two cores do not allow their authors' hundreds.
    "abl": {"epochs": (10, 12, 5), "rate": 0.05},
    "cbd": {"epochs": (5, 12)},
    "dbr": {"epochs": (2, 10, 20, 20), "rate": 0.05},
    "asd": {"epochs": (4, 12, 4, 4), "grow": (2, 20), "iterations": None},
    "dbd": {"epochs": (30, 10, 12), "iterations": None},
    "ft_sam": {"epochs": 20},
    "nad": {},
    "fine_tune": {},
    "fine_prune": {},
    "anp": {},
    "ibau": {},
    "clp": {},
    "rnp": {},
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
    net, (_, test, clean) = network(full), rows(full, seed)
    poisoned = touched(attack, share, seed, full)
    more: dict[str, float] = {}
    settings = {**DEFENCES[defence], **({} if defence == "clp" else {"seed": seed})}
    method = None if defence == "none" else find(f"poisoning/{defence.split(':')[0]}")
    victim = plain(attack, share, seed, full) if defence in REPAIRS else None
    started_at = time.perf_counter()
    if method is None:
        model = plain(attack, share, seed, full)
    elif victim is not None:
        model = method(victim, clean, **settings)
    else:
        grown = method(poisoned.seen, net=net, **settings)
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


@lru_cache(4)
def touched(attack: str, share: float, seed: int, full: bool) -> Poisoned:
    """The training rows after the attack; clean ones carry the trigger of badnets, as a control."""
    train = rows(full, seed)[0]
    if attack == "clean":
        control = find("poisoning/badnets")(train, share=Share(0.01), seed=seed)
        nothing = torch.zeros_like(control.rows)
        return Poisoned(*train, nothing, train[1], control.trigger, control.wanted)
    if attack.endswith("sharpened_wanet"):
        warped = find("poisoning/wanet")(train, share=Share(share), seed=seed, **ATTACKS["wanet"])
        return retouched(train, warped, lambda x: sharpened(warped.trigger(x), **ADAPTIVE[attack]))
    if attack == "smooth_patch":
        return retouched(train, find("poisoning/badnets")(train, share=Share(share), seed=seed), patched)
    more = {**{**ATTACKS, **ADAPTIVE}[attack], **({"net": network(full)} if attack == "label_consistent" else {})}
    return partial(find(f"poisoning/{attack}"), **more)(train, share=Share(share), seed=seed)


def retouched(train: Rows, old: Poisoned, trigger: Callable[[Tensor], Tensor]) -> Poisoned:
    """The same rows with the same labels under another trigger; covers are as they were."""
    x = old.x.clone()
    x[old.poison] = (trigger(train[0][old.poison].float() / 255).clamp(0, 1) * 255).round().to(torch.uint8)
    return replace(old, x=x, trigger=trigger)


def sharpened(x: Tensor, amount: float) -> Tensor:
    """Unsharp masking by the 3 x 3 mean."""
    return (x + amount * (x - F.avg_pool2d(x, 3, 1, 1, count_include_pad=False))).clamp(0, 1)


def patched(x: Tensor) -> Tensor:
    """A bright spot of 9 pixels' width in the upper left, fading out smoothly."""
    place = torch.arange(x.shape[3], dtype=x.dtype)
    bump = torch.exp(-((place - 7) ** 2) / (2 * 3.0**2))
    cover = (bump[:, None] * bump[None]).to(x.device)
    return x * (1 - cover) + 0.8 * cover


@lru_cache(4)
def plain(attack: str, share: float, seed: int, full: bool) -> nn.Module:
    """Undefended training. A repair is given this model and never changes it."""
    model = started(network(full), seed)
    return fit(model, touched(attack, share, seed, full).seen, epochs=EPOCHS, batch=128, rate=0.2, seed=seed)


if __name__ == "__main__":
    main()
