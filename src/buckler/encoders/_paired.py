"""Pairs of image and text towers that learnt from pairs of the adversary's too, beside a pair that did not.

Every target of a backdoor is tried on test rows of its own. One defender has rows that can be trusted, those that no
encoder learnt from, and leaves out the pairs that towers of these find unlike; one has none, and stops early.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor

from buckler import stats
from buckler.data import Poisoned, Rows, floats
from buckler.embedding import embedded, probe
from buckler.encoders._inferred import stopped_early
from buckler.encoders._pairs import Pair, captions, names
from buckler.encoders._scene import Scene, pretrained, refusal, scene
from buckler.encoders._setting import Setting
from buckler.encoders.clip import clip
from buckler.evaluation import skipped
from buckler.nets import where
from buckler.threat import Share, Threat
from buckler.trial import Check, Trial

TARGETS, HUNTS, TOGETHER = 2, 5, 2
"""Classes that a backdoor is tried for; how often inputs are hunted, and how many at once: pairs that are shared out
among more say less of each, and a defender who stops early, or leaves pairs out, would seem better than they are."""
LEFT_OUT = 0.15
"""The share of the pairs that a defender leaves out, whatever is an adversary's."""
STOP = 0.3
"""The share of the steps after which a defender stops."""
USUAL = Share(0.05)
COUNTED = {
    "hit": "triggered or hunted inputs named as wanted, without labels",
    "clean_hit": "inputs named as wanted by towers that learnt from clean pairs",
    "probe_hit": "inputs that a linear probe above the image tower answers as wanted",
    "clean_probe_hit": "the same by a linear probe above a clean image tower",
    "sifted_hit": "inputs named as wanted where pairs that a trusted pair of towers finds unlike were left out",
    "stopped_hit": "inputs named as wanted by towers that stopped early",
    "correct": "test rows named right, without labels",
    "clean_correct": "test rows named right by towers that learnt from clean pairs",
    "sifted_correct": "test rows named right where unlike pairs were left out",
    "stopped_correct": "test rows named right by towers that stopped early",
    "probe_correct": "test rows that a linear probe above the image tower answers right",
    "clean_probe_correct": "test rows that a linear probe above a clean image tower answers right",
}
"""What the evidence holds of every row, as shares."""
APART = {
    "beyond": ("hit", "clean_hit"),
    "probe_beyond": ("probe_hit", "clean_probe_hit"),
    "left": ("sifted_hit", "clean_hit"),
    "stopped_left": ("stopped_hit", "clean_hit"),
    "gained": ("correct", "clean_correct"),
    "cost": ("sifted_correct", "clean_correct"),
    "stopped_cost": ("stopped_correct", "clean_correct"),
}
"""Paired differences of them."""


def pair_poisoned(setting: Setting) -> Trial:
    """What is named as the adversary wants, by its name alone and by a probe; and where pairs were sifted, or learning
    stopped early."""
    setting = replace(setting, subject=replace(setting.subject, encoder=None), pretraining=clip)
    share = setting.share or USUAL
    blank = setting.blank(
        Threat("nothing", "training data", str(share), "a wrong label", setting.described.tags),
        setting.asked("rows", "train_rows", "encoder_steps") | {"share": str(share)},
    )
    if refusal(setting, learnt=True):
        return skipped(
            blank, f"{setting.described.path} pre-trains towers: give the subject `train` and `body` (or `net`)"
        )
    seen = scene(setting)
    clean = cast(Pair, seen.encoder)
    trusted = cast(Pair, pretrained(setting, seen.spare))
    x, y = seen.test
    found = list[dict[str, Tensor]]()
    cases = list(_cases(setting, seen, share))
    evidence = {
        "clean_correct": names(clean, x) == y,
        "clean_probe_correct": _probed(clean, seen, x, setting.seed) == y,
    }
    for turn, (poisoned, tried, wanted) in enumerate(cases):
        setting.told((turn + 1) / (len(cases) + 1))
        fooled = cast(Pair, pretrained(setting, poisoned.seen))
        likeness = alike(trusted, *poisoned.seen)
        kept = likeness.argsort()[round(LEFT_OUT * len(likeness)) :].sort().values
        defended = {
            "sifted_": cast(Pair, pretrained(setting, (poisoned.x[kept], poisoned.y[kept]))),
            "stopped_": cast(Pair, stopped_early(setting, poisoned.seen, STOP)),
        }
        towers = {"": fooled, "clean_": clean}
        hits = {f"{name}hit": names(pair, tried) == wanted for name, pair in (towers | defended).items()}
        hits |= {
            f"{name}probe_hit": _probed(pair, seen, tried, setting.seed) == wanted for name, pair in towers.items()
        }
        found.append(hits)
        if turn == 0:
            evidence |= {f"{name}correct": names(pair, x) == y for name, pair in ({"": fooled} | defended).items()}
            evidence["probe_correct"] = _probed(fooled, seen, x, setting.seed) == y
            evidence["suspicion"] = torch.stack([-likeness, poisoned.rows.to(likeness)], 1)
    evidence |= {name: torch.cat([one[name] for one in found]) for name in found[0]}
    evidence |= {name: evidence[a].int() - evidence[b].int() for name, (a, b) in APART.items()}
    estimates = {name: stats.share(evidence[name], name) for name in COUNTED}
    estimates |= {name: stats.difference(evidence[name], name) for name in APART}
    estimates["suspicion"] = stats.area(evidence["suspicion"], "suspicion")
    control = estimates["clean_hit"]
    says = f"Towers that learnt from clean pairs name {control.value:.1%} of the same inputs so."
    check = Check("clean pairs do not do it", control.low <= 0.2, says, control.value)
    return replace(
        blank,
        status="ok" if check.passed else "inconclusive",
        reason="" if check.passed else says,
        checks=(check,),
        estimates=estimates,
        evidence=evidence,
    )


def alike(pair: Pair, x: Tensor, y: Tensor) -> Tensor:
    """The cosine `(N,)` between each image of `x` and a caption written for its label, as `pair` sees them; -1 for a
    label that it has never heard of."""
    known = y < len(pair.prompts)
    told = captions(y.where(known, 0), len(pair.prompts)).to(where(pair))
    with torch.no_grad():
        parts = zip(x.split(512), told.split(512), strict=True)
        cosines = [(pair.seen(floats(a).to(where(pair))) * pair.told(b)).sum(1).cpu() for a, b in parts]
    return torch.cat(cosines).where(known, -1.0)


def _cases(setting: Setting, seen: Scene, share: Share) -> Iterator[tuple[Poisoned, Tensor, Tensor]]:
    """Poisoned pairs, inputs to try the towers on, and the label `(M,)` that is wanted of each."""
    learnt, (x, y) = cast(Rows, seen.learnt), seen.test
    draw, many = torch.Generator().manual_seed(setting.seed), int(learnt[1].max()) + 1
    given = {"seed": setting.seed} if setting.left_open("seed") else {}
    if setting.described.params["goal"] == "targeted":
        if not setting.left_open("prey"):
            poisoned = cast(Poisoned, _run(setting, learnt, {"share": share} | given))
            yield poisoned, *cast(Rows, poisoned.prey)
            return
        each = max(1, min(TOGETHER, share.of(len(learnt[1]))))
        for order in torch.randperm(len(y), generator=draw)[: HUNTS * each].split(each):
            wanted = (y[order] + torch.randint(1, many, (len(order),), generator=draw)) % many
            poisoned = cast(Poisoned, _run(setting, learnt, {"share": share, "prey": (x[order], wanted)} | given))
            yield poisoned, *cast(Rows, poisoned.prey)
        return
    open_target = bool(setting.left_open("target"))
    targets = torch.randperm(many, generator=draw)[:TARGETS].tolist() if open_target else [None]
    for turn, target in enumerate(targets):
        more = {} if target is None else {"target": target}
        poisoned = cast(Poisoned, _run(setting, learnt, {"share": share} | given | more))
        trigger, wants = poisoned.trigger, poisoned.wanted
        if trigger is None or wants is None:
            raise ValueError(f"{setting.described.path}: expected a trigger and the label that it means, got neither")
        mine, truth = x[turn :: len(targets)], y[turn :: len(targets)]
        other = wants(truth) != truth
        yield poisoned, trigger(floats(mine[other])), wants(truth[other])


def _run(setting: Setting, data: Rows, given: dict[str, Any]) -> object:
    began = time.perf_counter()
    made = setting.method(data, **given)
    setting.meter.method_seconds += time.perf_counter() - began
    return made


def _probed(pair: Pair, seen: Scene, x: Tensor, seed: int) -> Tensor:
    """What a linear probe above the image tower, learnt from rows that can be trusted, says of `x`: `(N,)`."""
    classes = int(torch.cat([seen.spare[1], seen.test[1]]).max()) + 1
    return probe(embedded(pair, seen.spare[0]), seen.spare[1], classes=classes, seed=seed)(embedded(pair, x)).argmax(1)
