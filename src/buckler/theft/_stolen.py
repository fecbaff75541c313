"""A thief, by how its copies answer: like the victim, rightly, and to inputs that were made to fool them.

Beside the copy of the largest budget stand others. One was stolen by the same thief from a door that answers any row
with what the victim said of some other: what it agrees on is chance. One learnt the same pool with its true labels:
what can be had without the victim by whoever knows them. And adversarial examples are made on both the copy and the
latter.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn

from buckler import stats
from buckler.catalog import find
from buckler.claims import secret
from buckler.dice import Dice
from buckler.method import Method, describe
from buckler.stats import Estimate
from buckler.target import Oracle
from buckler.theft._door import door, shown_to
from buckler.theft._scene import Scene, accounted, enough, labels, robbed, scene
from buckler.theft._setting import Setting
from buckler.theft._thief import taught
from buckler.threat import Ball, Threat
from buckler.train import portions, started
from buckler.trial import Check, Trial

RADIUS = 0.1
"""How far inputs are moved, in linf, where the subject names no limit."""
KNOWN = {"test": "inputs of the same distribution", "train": "the inputs learnt from", "noise": "noise"}
EPOCHS, STEPS = 100, 3000
"""How long a network learns true labels, as thieves learn answers; at most so many steps."""
STRICT = 0.999
"""The level at which a control is called out."""
CONTROLS = 4
"""How many controls in a row have to agree too well: one copy of random answers may do so by luck."""
CONTROL = "a copy of answers to other rows agrees no more than by chance"


def stolen(setting: Setting) -> Trial:
    """A copy for every budget, and what it is worth; see `evaluate.evaluate`."""
    return accounted(setting, _begun, _measured)


def _begun(setting: Setting) -> Trial:
    reveals = shown_to(setting.described.holds, setting.reveals, setting.subject.model)
    blank = setting.blank(
        threat_of(setting, setting.method, reveals),
        {
            "rows": setting.rows,
            "queries": list(setting.queries),
            "reveals": reveals,
            "pool": setting.pool,
            "train_rows": setting.train_rows,
        },
    )
    return replace(blank, reason=enough(setting))


def _measured(setting: Setting, blank: Trial) -> Trial:
    subject, reveals, seen = setting.subject, blank.threat.sees, scene(setting)
    victim = seen.victim
    evidence: dict[str, Tensor] = {"correct": victim == seen.y}
    copy, asked, curve = started(seen.net, setting.seed), list[int](), dict[str, Estimate]()
    share = 1 / (len(setting.queries) + 2)
    for index, budget in enumerate(setting.queries):
        oracle = door(subject.model, reveals, budget)
        made = robbed(setting, setting.method, oracle, seen)
        if oracle.asked in asked:  # a larger budget changes nothing
            break
        copy = made
        asked.append(oracle.asked)
        evidence |= compared(copy, seen, victim, f"_{budget}")
        curve |= estimated(evidence, f"_{budget}")
        setting.told((index + 1) * share)
    evidence |= {"budget": torch.tensor(setting.queries[: len(asked)]), "asked": torch.tensor(asked)}
    within = blank.threat.within.replace(f"{max(setting.queries)} queries", f"{asked[-1]} queries")
    evidence |= compared(copy, seen, victim)
    evidence["both_correct"] = torch.stack([evidence["copy_correct"], evidence["correct"]], 1)
    evidence["control_agreed"], check = _control(setting, reveals, seen, asked[-1])
    setting.told(1 - share)
    evidence["above_control"] = evidence["agreed"].to(torch.int8) - evidence["control_agreed"].to(torch.int8)
    makers = {"": copy}
    if seen.truth is not None and asked[-1] > 0:
        order = torch.randperm(len(seen.pool), generator=torch.Generator().manual_seed(setting.seed))[: asked[-1]]
        lesson = seen.pool[order.to(setting.device)], seen.truth[order.to(setting.device)]
        fresh = started(seen.net, setting.seed).to(setting.device)
        epochs = min(EPOCHS, STEPS / len(portions(len(order), 32)))
        evidence["taught"] = torch.tensor([len(order)])
        makers["alone_"] = taught(fresh, lesson, epochs=epochs, batch=32, rate=0.1, seed=setting.seed)
        evidence |= compared(makers["alone_"], seen, victim, "_alone")
    evidence |= _transferred(setting, makers, seen)
    return replace(
        blank,
        threat=replace(blank.threat, within=within),
        status="ok" if check.passed else "inconclusive",
        reason="" if check.passed else check.says,
        checks=(check,),
        estimates={**_estimates(evidence), **curve},
        evidence=evidence,
    )


def threat_of(setting: Setting, thief: Method, reveals: str) -> Threat:
    """What a thief hears, how often, and what it knows beside."""
    knows = [f"{max(setting.queries)} queries", KNOWN[setting.pool]]
    if "net" in describe(thief).knobs:
        knows.append("the model's own network" if setting.subject.net is not None else "a small network")
    return Threat(reveals, "nothing", ", ".join(knows), "a copy of the model", setting.described.tags)


def compared(copy: nn.Module, seen: Scene, victim: Tensor, name: str = "") -> dict[str, Tensor]:
    """Evidence of a copy: on which rows it says what the `victim` says `(N,)`, and which it answers rightly."""
    answers = labels(copy, seen.x)
    return {f"agreed{name}": answers == victim, f"copy_correct{name}": answers == seen.y}


def estimated(evidence: Mapping[str, Tensor], name: str = "") -> dict[str, Estimate]:
    return {
        f"fidelity{name}": stats.share(evidence[f"agreed{name}"], f"agreed{name}"),
        f"accuracy{name}": stats.share(evidence[f"copy_correct{name}"], f"copy_correct{name}"),
    }


def _estimates(evidence: Mapping[str, Tensor]) -> dict[str, Estimate]:
    found = {"victim_accuracy": stats.share(evidence["correct"], "correct"), **estimated(evidence)}
    found["accuracy_ratio"] = stats.ratio(evidence["both_correct"], "both_correct")
    found["control_fidelity"] = stats.share(evidence["control_agreed"], "control_agreed")
    found["fidelity_above_control"] = stats.difference(evidence["above_control"], "above_control")
    if "agreed_alone" in evidence:
        found |= estimated(evidence, "_alone")
    for name in ("transferred", "alone_transferred", "noise_transferred"):
        if name in evidence:
            found[name] = stats.share(evidence[name], name)
    return found


def _control(setting: Setting, reveals: str, seen: Scene, many: int) -> tuple[Tensor, Check]:
    """On which rows a copy of `many` answers to other rows agrees `(N,)`: the first no better than chance, or the last.

    Answers are drawn from those to some rows of the pool, whatever is asked and in however small batches.
    """
    told = door(setting.subject.model, reveals)
    bank = told(seen.pool[: max(1, many)])

    def tried(run: int) -> tuple[Tensor, Check]:
        draw = secret(setting.seed + run, "control")

        def answer(x: Tensor) -> Tensor:
            return bank[torch.randint(len(bank), (len(x),), generator=draw).to(bank.device)]

        oracle = Oracle(answer, told.reveals, many)
        copy = robbed(replace(setting, seed=setting.seed + run), setting.method, oracle, seen)
        agreed = labels(copy, seen.x) == seen.victim
        return agreed, _by_chance(agreed, seen.victim)

    agreed, check = tried(0)
    for run in range(1, CONTROLS):
        if check.passed:
            break
        agreed, check = tried(run)
    return agreed, check


def reach(setting: Setting) -> Ball:
    """How far inputs are moved: what the subject names first in linf."""
    radii = [float(ball.radius) for ball in setting.subject.limits if ball.norm == "linf"]
    return Ball("linf", radii[0] if radii else RADIUS)


def _transferred(setting: Setting, makers: Mapping[str, nn.Module], seen: Scene) -> dict[str, Tensor]:
    """Of the rows that the victim answers rightly, those whose adversarial example for a copy turns the victim too.

    `noise_` are those that the same distance in random directions turns.
    """
    x, y = seen.x[seen.victim == seen.y], seen.y[seen.victim == seen.y]
    if len(y) == 0:
        return {}
    ball = reach(setting)
    sign = Dice(x, setting.seed).signs(*x.shape[1:]).to(x)
    moved = {"noise_": (x + float(ball.radius) * sign).clamp(0, 1)}
    for name, copy in makers.items():
        moved[name] = find("evasion/pgd")(copy, x, y, ball=ball, stop=False, seed=setting.seed)
    return {f"{name}transferred": labels(setting.subject.model, there) != y for name, there in moved.items()}


def _by_chance(agreed: Tensor, victim: Tensor) -> Check:
    """Whether a copy that cannot know agrees `(N,)` more than the victim's commonest label would."""
    low = stats.share(agreed, "control_agreed", STRICT).low
    common = float(victim.bincount().max()) / len(victim)
    good = low <= common
    says = f"It agrees on {float(agreed.float().mean()):.1%} of the rows, {common:.1%} of which have one label."
    more = (
        ""
        if good
        else f" {CONTROLS} of {CONTROLS} such copies do: the thief knows the model in another way than by answers."
    )
    return Check(CONTROL, good, says + more, float(agreed.float().mean()))
