"""Encoders whose probes vote, beside one encoder of all rows, and beside networks that learnt from none.

The certificate is tested before it is believed. Votes are turned in the worst way, one by one, and counted again; and
rows are changed for noise, all of them stand in another order, and everything is pre-trained anew. No row of the
pre-training data reaches an untrained network, so the vote of as many of these is what a proof must be worth more than.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor, nn

from buckler import stats
from buckler.data import Rows, floats, held_as
from buckler.embedding import elected, embedded, probe
from buckler.encoders._pretrained import by_few, said_by_few, settled
from buckler.encoders._scene import Task, body, refusal, scene, tasks
from buckler.encoders._setting import Setting
from buckler.evaluation import skipped
from buckler.kinds import Bagged
from buckler.method import plain
from buckler.threat import Share, Threat
from buckler.trial import Check, Trial, fingerprint_model

HOLDS = "certificate holds"
TIGHT = "certificate is tight"
APART = "a row reaches its own part only"


def bagged(setting: Setting) -> Trial:
    """What the vote is right about, and what of that is proven for so many rows of the pre-training data."""
    described, share = setting.described, setting.share or Share(0.01)
    within = f"{share} of the rows that are pre-trained on"
    blank = setting.blank(
        Threat("the training data", "training data", within, "any wrong answer downstream", described.tags),
        setting.asked("rows", "train_rows", "encoder_steps")
        | {"share": str(share), "pretraining": plain(setting.pretraining)},
    )
    filled = _filled(setting)
    steps = {name: value for name, value in filled.items() if name == "steps"}
    blank = replace(blank, params={k: v for k, v in blank.params.items() if k not in filled} | steps)
    setting = replace(setting, subject=replace(setting.subject, encoder=None))
    if reason := refusal(setting):
        return skipped(blank, reason)
    seen = scene(setting)
    setting.told(0.3)
    task, learnt = tasks(setting, seen)[0], cast(Rows, seen.learnt)
    made = _made(setting, learnt)
    setting.told(0.6)
    poisoned, rows, order = _noisy(learnt, share, setting.seed)
    again = _made(setting, poisoned)
    setting.told(0.9)
    reached, strays = _reached(made, again, rows, order)
    votes = _voted(made.encoders, task, setting.seed)
    label, radius = elected(votes[0], classes=task.classes)
    turned = elected(_voted(again.encoders, task, setting.seed, few=False)[0], classes=task.classes)[0]
    fell = int(((turned != label) & (radius >= len(reached))).sum())
    fell += sum(_falls(votes[0, :, row].tolist(), int(radius[row]), task.classes) for row in range(len(label)))
    loose = sum(not _falls(votes[0, :, row].tolist(), int(radius[row]) + 1, task.classes) for row in range(len(label)))
    idle = [settled(replace(setting, seed=setting.seed + one), task.train[0]) for one in range(len(made.encoders))]
    many = share.of(len(learnt[1]))
    evidence = _worth(votes, task, many)
    evidence |= {
        f"untrained_{name}": right for name, right in _worth(_voted(idle, task, setting.seed), task, 0).items()
    }
    evidence |= _alone(cast(nn.Module, seen.encoder), task, setting.seed)
    evidence["noisy_correct"] = turned == task.test[1]
    evidence["open"] = radius < many
    for few in ("", "few_"):
        proven, idly, vote, alone = (
            evidence[name] if few else evidence[name].to(torch.int8)
            for name in (f"{few}certified", f"untrained_{few}correct", f"{few}correct", f"control_{few}correct")
        )
        evidence[f"{few}worth"], evidence[f"{few}kept"] = proven - idly, vote - alone
    says = (
        f"{fell} answers were turned by no more voters than is proven for them, by votes that were decided for them or "
        f"by {many} rows changed for noise, which reached {len(reached)} of {len(made.encoders)} parts."
    )
    checks = (
        Check(HOLDS, fell == 0, says, float(fell)),
        Check(TIGHT, loose == 0, f"{loose} answers are not turned by one voter more.", float(loose)),
        Check(APART, strays == 0, f"{strays} encoders differ though no changed row is of their part.", float(strays)),
    )
    broken = next((check.says for check in (checks[0], checks[2]) if not check.passed), "")
    return replace(
        blank,
        status="failed" if broken else "ok",
        reason=broken,
        checks=checks,
        estimates={name: _estimate(value, name) for name, value in evidence.items() if not name.endswith("radius")},
        evidence=evidence | {"part": made.part, "votes": votes[0].T},
    )


def _filled(setting: Setting) -> dict[str, object]:
    """What an evaluation decides where the method leaves it open: as many steps in all as one encoder takes."""
    steps = max(1, setting.encoder_steps // max(1, cast(int, setting.described.params.get("parts", 1))))
    given: dict[str, object] = {"by": setting.pretraining, "steps": steps}
    return {name: given[name] for name in setting.left_open(*given)}


def _made(setting: Setting, data: Rows) -> Bagged:
    build = body(setting.subject)
    given: dict[str, Any] = {"net": lambda: cast(Any, build)().to(setting.device), "seed": setting.seed}
    began = time.perf_counter()
    made: Bagged = setting.method(
        (data[0].to(setting.device), data[1].to(setting.device)),
        **{name: given[name] for name in setting.left_open(*given)} | _filled(setting),
    )
    setting.meter.method_seconds += time.perf_counter() - began
    return made


def _noisy(data: Rows, share: Share, seed: int) -> tuple[Rows, Tensor, Tensor]:
    """The rows with so many changed for noise, and in another order: with it, which are changed `(N,)`, before it, and
    the order `(N,)`."""
    draw = torch.Generator().manual_seed(seed)
    order, rows = torch.randperm(len(data[1]), generator=draw), torch.zeros(len(data[1]), dtype=torch.bool)
    rows[torch.randperm(len(rows), generator=draw)[: share.of(len(rows))]] = True
    x = data[0].clone()
    x[rows] = held_as(x, torch.rand(floats(x[rows]).shape, generator=draw)).to(x.device)
    return (x[order], data[1][order]), rows, order


def _reached(made: Bagged, again: Bagged, rows: Tensor, order: Tensor) -> tuple[set[int], int]:
    """The parts that the changed rows left or entered, and how many encoders of other parts differ, with the rows that
    went elsewhere though they were not changed."""
    part = torch.empty_like(made.part)
    part[order] = again.part
    reached = {*made.part[rows].tolist(), *part[rows].tolist()}
    pairs = enumerate(zip(made.encoders, again.encoders, strict=True))
    differ = {one for one, pair in pairs if len({fingerprint_model(encoder) for encoder in pair}) > 1}
    return reached, len(differ - reached) + int((made.part != part)[~rows].sum())


def _voted(encoders: Sequence[nn.Module], task: Task, seed: int, *, few: bool = True) -> Tensor:
    """What probes above each encoder say of the test rows, `(1 + DRAWS, V, N)`: those of all labels, and of `few`."""
    said = list[Tensor]()
    for encoder in encoders:
        known, asked = embedded(encoder, task.train[0]), embedded(encoder, task.test[0])
        linear = probe(known, task.train[1], classes=task.classes, seed=seed)(asked).argmax(1)
        said.append(torch.cat([linear[None], *([said_by_few(known, asked, task, seed)] if few else [])]))
    return torch.stack(said, 1)


def _worth(votes: Tensor, task: Task, many: int) -> dict[str, Tensor]:
    """Whether votes are right about each row, and proven to be when `many` rows are added or removed, or changed; of
    probes of few labels how often they are. A radius is -1 where the vote is wrong."""
    label, radius = (
        torch.stack(found) for found in zip(*(elected(v, classes=task.classes) for v in votes), strict=True)
    )
    radius = torch.where(label == task.test[1], radius, -1)
    found = dict[str, Tensor]()
    for name, least in (("correct", 0), ("certified", many), ("changed_certified", 2 * many))[: 3 if many else 1]:
        head, joint, last = name.rpartition("_")
        sure = radius >= least
        found |= {name: sure[0], f"{head}{joint}few_{last}": sure[1:].float().mean(0)}
    return found | ({"radius": radius[0], "few_radius": radius[1:].T} if many else {})


def _alone(encoder: nn.Module, task: Task, seed: int) -> dict[str, Tensor]:
    """What one encoder of all rows is worth."""
    known, asked = embedded(encoder, task.train[0]), embedded(encoder, task.test[0])
    linear = probe(known, task.train[1], classes=task.classes, seed=seed)(asked).argmax(1)
    return {"control_correct": linear == task.test[1], "control_few_correct": by_few(known, asked, task, seed)}


def _falls(votes: Sequence[int], many: int, classes: int) -> bool:
    """Whether who decides `many` of the votes changes what they elect, counted anew: for each class in turn they are
    taken from the one elected and given to it."""
    label = _most(votes, classes)
    for rival in range(classes):
        turned, left = list(votes), many
        for voter, vote in enumerate(votes):
            if vote == label and left:
                turned[voter], left = rival, left - 1
        if _most(turned, classes) != label:
            return True
    return False


def _most(votes: Sequence[int], classes: int) -> int:
    counts = [votes.count(one) for one in range(classes)]
    return counts.index(max(counts))


def _estimate(value: Tensor, name: str) -> stats.Estimate:
    if value.is_floating_point():
        return stats.mean(value, name)
    return stats.share(value, name) if value.dtype == torch.bool else stats.difference(value, name)
