"""A guess at a class's share of what an encoder learnt from, by how often it is right about small encoders.

The training rows are divided: the adversary pre-trains encoders on one half, with the share high or low, and learns to
tell which; the guess is tried on encoders of the other half. The control is an adversary who was told the shares of the
wrong encoders.
"""

from __future__ import annotations

import time
from dataclasses import replace
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn

from buckler import nets, stats
from buckler.data import Rows, drawn, floats, mixed, raw
from buckler.embedding import embedded
from buckler.encoders._setting import Setting
from buckler.encoders._summaries import Worlds, alike
from buckler.evaluation import skipped
from buckler.kinds import Guessed
from buckler.method import describe, left_open
from buckler.target import Oracle
from buckler.threat import Threat
from buckler.train import portions
from buckler.trial import Check, Cost, Trial

QUESTIONS, BATCH, STEPS, WIDTH = 100, 60, 60, 4
CONTROL = "whoever was told the shares of other encoders is right no more often than by chance"


def shares(setting: Setting) -> Trial:
    """Of how many encoders the share is told; see `evaluate.evaluate`."""
    described, subject = setting.described, setting.subject
    label, shares = int(str(described.params["label"])), tuple(cast("list[float]", described.params["shares"]))
    said = " or ".join(f"{share:.0%}" for share in shares)
    blank = setting.blank(
        Threat(
            described.holds,
            "nothing",
            f"{QUESTIONS} queries, {setting.models} encoders of the adversary's own on rows of the same distribution",
            f"whether class {label} was {said} of the pre-training rows",
            described.tags,
        ),
        setting.asked("models", "train_rows"),
    )
    if subject.train is None:
        return skipped(blank, f"{described.path} pre-trains on shares of the rows: give the subject its `train`")
    x, y = raw(subject.train, drawn(subject.train, setting.train_rows, setting.seed))
    if x.ndim != 4:
        return skipped(blank, f"{described.path} pre-trains encoders of images, and the training rows are none")
    if setting.models < (least := len(shares) ** 2):
        raise ValueError(f"expected {least} encoders or more, {len(shares)} for each share, got {setting.models}")
    asked = floats(raw(subject.test, drawn(subject.test, QUESTIONS, setting.seed))[0]).to(setting.device)
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(setting.seed))
    which, made = list[Tensor](), list[nn.Module]()
    for side, half in enumerate((order[: len(y) // 2], order[len(y) // 2 :])):
        rows = x[half], y[half]
        held, kinds = mixed(rows[1], label, shares, setting.models, setting.seed + side)
        which.append(kinds)
        for index, own in enumerate(held):
            made.append(_encoder(setting, (rows[0][own], rows[1][own]), 10_000 * setting.seed + 1000 * side + index))
            setting.told(0.5 * side + 0.5 * (index + 1) / setting.models)
    mine, theirs = made[: setting.models], made[setting.models :]
    seen = torch.stack([alike(embedded(one, asked)) for one in mine])
    scores = _asked(setting, theirs, asked, Worlds(seen, which[0], label, shares))
    wrong = _asked(setting, theirs, asked, Worlds(seen, aside(which[0], len(shares), setting.seed), label, shares))
    evidence = {
        "right": scores.argmax(1) == which[1],
        "shuffled": wrong.argmax(1) == which[1],
        "score": scores,
        "which": which[1],
    }
    found = {name: stats.share(evidence[name], name) for name in ("right", "shuffled")}
    chance = float(which[1].bincount().max()) / len(which[1])
    quiet = stats.share(evidence["shuffled"], "shuffled", 0.999).low <= chance
    says = f"They are right about {found['shuffled'].value:.0%}, where chance is {chance:.0%}."
    return replace(
        blank,
        status="ok" if quiet else "inconclusive",
        reason="" if quiet else says,
        checks=(Check(CONTROL, quiet, says, found["shuffled"].value),),
        estimates=found,
        evidence=evidence,
        cost=Cost(queries=len(asked)),
    )


def _encoder(setting: Setting, rows: Rows, seed: int) -> nn.Module:
    """A small encoder, pre-trained as was asked for in few steps."""
    shape, method = rows[0].shape[1:], setting.pretraining
    net = partial(nets.encoder, channels=shape[0], width=WIDTH, blocks=(1, 1), stride=1 if shape[1] < 16 else 2)
    batch = int(str(describe(method).params["batch"])) if "batch" not in left_open(method, "batch") else BATCH
    given: dict[str, Any] = {"net": lambda: net().to(setting.device), "seed": seed, "batch": batch, "out": 32}
    given["epochs"] = STEPS / len(portions(len(rows[1]), batch))
    rows = rows[0].to(setting.device), rows[1].to(setting.device)
    return cast(nn.Module, method(rows, **{name: given[name] for name in left_open(method, *given)}))


def _asked(setting: Setting, encoders: list[nn.Module], x: Tensor, worlds: Worlds) -> Tensor:
    """What the method says of each encoder, `(M, V)`; a `ValueError` for scores that are none."""
    began, found = time.perf_counter(), list[Tensor]()
    for one in encoders:
        made = cast(Guessed, setting.method(Oracle(one, "features", len(x)), x, worlds=worlds))
        found.append(made["share"].detach().cpu())
    setting.meter.method_seconds += time.perf_counter() - began
    scores = torch.stack(found)
    if scores.shape != (len(encoders), len(worlds.shares)) or bool(scores.isnan().any()):
        raise ValueError(f"{setting.described.path}: expected a score for each share, got {tuple(scores.shape)}")
    return scores


def aside(which: Tensor, many: int, seed: int) -> Tensor:
    """Other values for encoders that have `which` `(M,)`: of those with one value, as many get each."""
    out, draw = torch.empty_like(which), torch.Generator().manual_seed(seed + 1)
    for value in range(many):
        rows = (which == value).nonzero().squeeze(1)
        out[rows[torch.randperm(len(rows), generator=draw)]] = torch.arange(len(rows)) % many
    return out
