"""What each of DLP's three stages does, drawn: docs/dlp-stages.png, from benchmarks/results/dlp-stages.json.

    python benchmarks/dlp_stages.py [--attacks badnets,wanet] [--seed 0] [--draw]

The data sets and the network are those of benchmarks/poisoning.py at 5 %. The evaluator, not the defence, knows which
rows are poisoned. `--draw` only draws what is recorded.
"""

from __future__ import annotations

import argparse
import json
from functools import partial
from typing import Any

import matplotlib
import torch
from torch import Tensor

from buckler.poisoning._measure import outcome
from buckler.poisoning.dlp import dlp
from poisoning import RESULTS, network, rows, touched

matplotlib.use("Agg")
from matplotlib import pyplot

STAGES = {"learn": (6, 0, 0), "unlearn": (6, 5, 0), "fine-tune": (6, 5, 12)}
BINS = 40


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--attacks", default="badnets,wanet")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--draw", action="store_true")
    options = parser.parse_args()
    path = RESULTS / "dlp-stages.json"
    if not options.draw:
        record = {attack: measured(attack, options.seed) for attack in options.attacks.split(",")}
        path.write_text(json.dumps(record, indent=1) + "\n", "utf8")
    draw(json.loads(path.read_text("utf8")))


def measured(attack: str, seed: int) -> dict[str, Any]:
    """The first stage's losses, the suspicion, and the model after each stage; stages repeat under the same seed."""
    poisoned, (_, test, _) = touched(attack, 0.05, seed, full=False), rows(full=False, seed=seed)
    groups = {"clean": ~poisoned.rows, "poisoned": poisoned.poison}
    found: dict[str, Any] = {"after": {}}
    for stage, epochs in STAGES.items():
        grown = dlp(poisoned.seen, net=network(full=False), epochs=epochs, seed=seed)
        flags = outcome(grown.model, test, poisoned)
        share = {name: round(float(flags[name].float().mean()), 4) for name in ("correct", "success")}
        found["after"][stage] = share
        if stage == "learn" and grown.suspicion is not None:
            loss = grown.dynamics["loss"]
            found["loss"] = {name: _quartiles(loss[:, group]) for name, group in groups.items()}
            score = grown.suspicion.score.argsort().argsort() / (len(poisoned.y) - 1)
            hist = partial(torch.histc, bins=BINS, min=0, max=1)
            found["suspicion"] = {name: (hist(score[group]) / group.sum()).tolist() for name, group in groups.items()}
    return found


def _quartiles(loss: Tensor) -> list[list[float]]:
    """The quartiles of every epoch's losses."""
    return [[round(v, 4) for v in line.quantile(torch.tensor([0.25, 0.5, 0.75])).tolist()] for line in loss]


def draw(record: dict[str, Any]) -> None:
    colours = {"clean": "#4477aa", "poisoned": "#cc3311"}
    figure, axes = pyplot.subplots(len(record), 3, figsize=(11, 2.9 * len(record)), squeeze=False, dpi=90)
    for (attack, found), (first, second, third) in zip(record.items(), axes, strict=True):
        for group, colour in colours.items():
            low, middle, high = zip(*found["loss"][group], strict=True)
            epochs = range(1, len(middle) + 1)
            first.plot(epochs, middle, color=colour, label=f"{group} rows (median, quartiles)")
            first.fill_between(epochs, low, high, color=colour, alpha=0.2, linewidth=0)
            places = [(i + 0.5) / BINS for i in range(BINS)]
            second.bar(
                places, found["suspicion"][group], width=1 / BINS, color=colour, alpha=0.6, label=f"{group} rows"
            )
        first.set(title=f"{attack}: 1. learn", xlabel="epoch", ylabel="loss")
        second.set(title="2. unlearn: whom it suspects", xlabel="rank of suspicion", ylabel="share of the rows")
        second.axvline(0.85, color="grey", linestyle=":", label="suspected whatever is there")
        for shift, (name, label, colour) in enumerate(
            [("correct", "accuracy", colours["clean"]), ("success", "attack success", colours["poisoned"])]
        ):
            heights = [100 * found["after"][stage][name] for stage in STAGES]
            bars = third.bar([i + 0.38 * shift for i in range(3)], heights, width=0.36, color=colour, label=label)
            third.bar_label(bars, fmt="%.1f", fontsize=8)
        third.set(title="after each stage, per cent", ylim=(0, 145))
        third.set_xticks([i + 0.19 for i in range(3)], [f"{i + 1}. {name}" for i, name in enumerate(STAGES)])
        for panel in (first, second, third):
            panel.legend(fontsize=7, loc="upper left" if panel is second else "upper right")
            panel.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(RESULTS.parent.parent / "docs" / "dlp-stages.png")


if __name__ == "__main__":
    main()
