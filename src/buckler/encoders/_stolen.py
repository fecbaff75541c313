"""A thief of an encoder, by what its copies are good for, and by what they cost beside pre-training.

What is paid is counted in passes: rows forwards plus rows backwards through the thief's network, and rows asked. Those
of pre-training are counted the same way over one epoch, views, and slower copies of the network, included.

An untrained network's features are good for something, where labels abound for nearly everything, and the thief could
pre-train an encoder of its own. So beside the copies stand, each with the thief's network: one untrained; one that was
pre-trained on the thief's rows for no more than the dearest copy cost; and one for as long as the target was. What a
copy is worth is judged by probes of few labels.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from buckler import nets, stats
from buckler.embedding import embedded, probe
from buckler.encoders._pretrained import by_few, settled
from buckler.encoders._scene import Scene, Task, body, pretrained, refusal, scene, tasks
from buckler.encoders._setting import Setting
from buckler.evaluation import skipped
from buckler.method import Method, describe, held, left_open
from buckler.stats import Estimate
from buckler.target import Meter, Oracle, QueryBudgetExceeded, metered
from buckler.threat import Threat
from buckler.train import portions
from buckler.trial import Check, Cost, Trial

SMALL = 16
"""The side of images up to which a thief's network looks at every pixel."""
STEALABLE = "the target is surely worth more than an untrained network"
CONTROLS = {"alone": "pre-trained at the copy's cost", "full": "pre-trained in full", "untrained": "untrained"}
"""What stands beside the copies, with its name for a reader."""


def stolen(setting: Setting) -> Trial:
    """A copy for every budget, and what it is worth and costs; see `evaluate.evaluate`."""
    blank = setting.blank(
        threat_of(setting),
        {**setting.asked("rows", "train_rows", "encoder_steps"), "queries": list(setting.queries)},
    )
    if reason := refusal(setting):
        return skipped(blank, reason)
    target = setting.subject.encoder
    asked, refused = (target.asked, target.refused) if isinstance(target, Oracle) else (0, 0)
    try:
        return _measured(setting, blank)
    except QueryBudgetExceeded:
        if not isinstance(target, Oracle) or target.refused == refused:
            raise
        many = target.asked - asked
        reason = f"the subject's own budget of queries ended after {many}: give it more, or ask for less"
        return replace(blank, status="inconclusive", reason=reason, cost=Cost(queries=many))


def _measured(setting: Setting, blank: Trial) -> Trial:
    seen, setting = outfitted(setting)
    used = tasks(setting, seen)
    features = embedded(seen.encoder, seen.test[0])
    evidence = worth(seen.encoder, used, setting.seed)
    setting.told(0.2)
    whole, asked, paid = passes(setting, seen), list[int](), list[float]()
    for budget in setting.queries:
        oracle = cast(Oracle, held("features", seen.encoder, budget))
        copy, cost = robbed(setting, setting.method, oracle, seen)
        if oracle.asked in asked:  # a larger budget changes nothing
            break
        asked.append(oracle.asked)
        paid.append(cost)
        last = worth(copy, used, setting.seed, "copy_") | likeness(features, copy, seen, "")
        evidence |= last | {_at(budget, name): values for name, values in last.items()}
        setting.told(0.2 + 0.4 * len(asked) / len(setting.queries))
    evidence |= {"budget": torch.tensor(setting.queries[: len(asked)]), "asked": torch.tensor(asked)}
    evidence |= {"passes": torch.tensor(paid), "share_paid": torch.tensor(paid) / whole}
    for name, made in _without_asking(setting, seen, paid[-1] / whole).items():
        evidence |= worth(made, used, setting.seed, f"{name}_")
    names = ["copy", *(f"copy_{budget}" for budget in evidence["budget"].tolist()), *CONTROLS]
    evidence |= compared(evidence, names, used)
    evidence["above_alone"] = less(evidence, "copy_few_correct", "alone_few_correct")
    evidence["above_untrained"] = less(evidence, "few_correct", "untrained_few_correct")
    check = _stealable(evidence)
    return replace(
        blank,
        status="ok" if check.passed else "inconclusive",
        reason="" if check.passed else check.says,
        checks=(check,),
        estimates=estimated(evidence),
        evidence=evidence,
        cost=Cost(queries=sum(asked)),
    )


def _at(budget: int, name: str) -> str:
    """`copy_correct` as `copy_100_correct`, and `cosine` as `cosine_100`."""
    return name.replace("copy_", f"copy_{budget}_") if name.startswith("copy_") else f"{name}_{budget}"


def threat_of(setting: Setting) -> Threat:
    """A thief's: what it hears, how often, and what it knows beside."""
    knows = f"{max(setting.queries)} queries, images of the same distribution, the encoder's own network"
    return Threat("features", "nothing", knows, "an encoder that is as good", setting.described.tags)


def outfitted(setting: Setting) -> tuple[Scene, Setting]:
    """The scene, and the setting with a network for the thief where the subject has none."""
    seen = scene(setting)
    if body(setting.subject) is not None:
        return seen, setting
    channels, side = seen.spare[0].shape[1], min(seen.spare[0].shape[2:])
    build = partial(nets.encoder, channels=channels, stride=1 if side <= SMALL else 2)
    return seen, replace(setting, subject=replace(setting.subject, body=build))


def robbed(setting: Setting, thief: Method, oracle: Oracle, seen: Scene) -> tuple[nn.Module, float]:
    """What a thief makes of an oracle's answers, and the passes that it took, rows asked included."""
    began = time.perf_counter()
    with metered() as own:
        given: dict[str, Any] = {"net": _watched(setting, own), "seed": setting.seed}
        pool = seen.spare[0].to(setting.device)
        copy = thief(oracle, pool, **{name: given[name] for name in left_open(thief, *given)})
    setting.meter.method_seconds += time.perf_counter() - began
    setting.meter.forwards += own.forwards
    setting.meter.backwards += own.backwards
    return copy, float(own.forwards + own.backwards + oracle.asked)


def passes(setting: Setting, seen: Scene) -> float:
    """The passes of pre-training on as many rows as are spare, from those of one epoch."""
    method, many = setting.pretraining, len(seen.spare[1])
    params = describe(method).params
    each = len(portions(many, cast(int, params["batch"])))
    epochs = setting.encoder_steps / each if left_open(method, "epochs") else cast(float, params["epochs"])
    with metered() as own:
        method(seen.spare, net=_watched(setting, own), epochs=1, seed=setting.seed)
    return (own.forwards + own.backwards) * epochs


def _watched(setting: Setting, meter: Meter) -> Callable[[], nn.Module]:
    build = cast("Callable[[], nn.Module]", body(setting.subject))

    def net() -> nn.Module:
        model = build().to(setting.device)
        meter.watch(model)
        return model

    return net


def _without_asking(setting: Setting, seen: Scene, share: float) -> dict[str, nn.Module]:
    """The encoders of `CONTROLS`: `share` is what the copy cost of what pre-training costs."""
    short = replace(setting, encoder_steps=max(1, round(share * setting.encoder_steps)))
    return {
        "alone": pretrained(short, seen.spare, seed=setting.seed + 1),
        "full": pretrained(setting, seen.spare, seed=setting.seed + 1),
        "untrained": settled(setting, seen.spare[0]),
    }


def worth(encoder: nn.Module | Oracle, used: tuple[Task, ...], seed: int, name: str = "") -> dict[str, Tensor]:
    """Which test rows are right `(N,)`: by a linear probe for each task, the first without its name, and, for the
    first, by most of some probes of few labels."""
    found = dict[str, Tensor]()
    known, asked = (embedded(encoder, x) for x in (used[0].train[0], used[0].test[0]))
    for task in used:
        if task.train[0] is not used[0].train[0]:
            known, asked = (embedded(encoder, x) for x in (task.train[0], task.test[0]))
        linear = probe(known, task.train[1], classes=task.classes, seed=seed)(asked).argmax(1)
        found[f"{name}correct" if task is used[0] else f"{name}{task.name}_correct"] = linear == task.test[1]
        if task is used[0]:
            found[f"{name}few_correct"] = by_few(known, asked, task, seed) > 0.5
    return found


def likeness(features: Tensor, copy: nn.Module, seen: Scene, name: str) -> dict[str, Tensor]:
    """Evidence of how a copy answers test rows: the cosine to the target's `features`, both less their means, and
    whether no other row of the target's is nearer."""
    copied = embedded(copy, seen.test[0])
    if copied.shape != features.shape:
        raise ValueError(f"expected a copy with {features.shape[1]} features, got {copied.shape[1]}")
    mine, theirs = (
        F.normalize(one - one.mean(0), dim=1) for one in (F.normalize(copied, dim=1), F.normalize(features, dim=1))
    )
    alike = mine @ theirs.T
    return {f"cosine{name}": alike.diagonal(), f"recognised{name}": alike.argmax(1) == torch.arange(len(alike))}


def compared(evidence: Mapping[str, Tensor], names: Sequence[str], used: tuple[Task, ...]) -> dict[str, Tensor]:
    """For each of `names` and each task, whether its rows and the target's are right, `(N, 2)`."""
    own = ["correct", "few_correct", *(f"{task.name}_correct" for task in used[1:])]
    return {
        f"both_{name}_{one}": torch.stack([evidence[f"{name}_{one}"], evidence[one]], 1)
        for name in names
        for one in own
    }


def estimated(evidence: Mapping[str, Tensor]) -> dict[str, Estimate]:
    """What can be said of every piece of evidence that has an estimate."""
    found = dict[str, Estimate]()
    for name, values in evidence.items():
        if name.startswith("both_"):
            found[name.replace("both_", "ratio_").replace("_correct", "")] = stats.ratio(values, name)
        elif name.startswith(("above_", "change_")):
            found[name] = stats.difference(values, name)
        elif name.startswith("cosine"):
            found[name] = stats.mean(values, name)
        elif name.endswith("correct") or name.startswith("recognised"):
            found[name.replace("correct", "accuracy")] = stats.share(values, name)
    return found


def less(evidence: Mapping[str, Tensor], more: str, than: str) -> Tensor:
    """1 for a row that is right in `more` and not in `than`, -1 for the other way round, else 0: `(N,)`."""
    return evidence[more].to(torch.int8) - evidence[than].to(torch.int8)


def _stealable(evidence: Mapping[str, Tensor]) -> Check:
    gain = stats.difference(evidence["above_untrained"], "above_untrained")
    own, without = (float(evidence[f"{name}few_correct"].float().mean()) for name in ("", "untrained_"))
    says = f"Probes of few labels are right on {own:.1%} of the rows, and above an untrained network on {without:.1%}."
    return Check(STEALABLE, gain.low > 0, says, gain.value)
