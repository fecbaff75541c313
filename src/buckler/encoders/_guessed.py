"""Guesses: at an input's attributes, at what an encoder learnt from, and, here, at how it was made.

The rows at hand are divided: a thief pre-trains encoders in many ways on one half and learns to tell the traits; the
guess is then tried on encoders of the other half. Beside it stand a metamodel that was told the traits of the wrong
encoders, and answers behind guards that the thief knows of. Of the subject's own encoder it is said what is guessed.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor, nn

from buckler import nets, stats
from buckler.data import Rows, drawn, floats, raw
from buckler.embedding import embedded
from buckler.encoders._attributes import attributes
from buckler.encoders._blurred import answering, guards
from buckler.encoders._making import WAYS, Metamodel, drawn_ways, made, taught
from buckler.encoders._scene import Scene, halved, refusal, scene
from buckler.encoders._setting import Setting
from buckler.encoders._shares import aside, shares
from buckler.encoders._summaries import VIEWS, questions, summary
from buckler.evaluation import skipped
from buckler.kinds import Guessed
from buckler.method import describe
from buckler.stats import Estimate
from buckler.target import Oracle
from buckler.threat import Threat
from buckler.trial import Check, Cost, Trial

LEAST, MOST, IMAGES = 40, 300, 24
"""The fewest rows that are divided, the most that an encoder learns from, and how many images are asked about."""
CONTROL = "a metamodel taught with the traits of other encoders tells no more than chance"
STRICT = 0.999
"""The level at which the control is called out, over all traits."""


def guessed(setting: Setting) -> Trial:
    """A guess at a share, at the making, or at attributes of inputs, by what the method asks to be given."""
    if setting.left_open("worlds"):
        return shares(setting)
    return _making(setting) if setting.left_open("metamodel") else attributes(setting)


def _making(setting: Setting) -> Trial:
    described, subject = setting.described, setting.subject
    asked = (len(VIEWS) + 1) * IMAGES
    blank = setting.blank(
        Threat(
            described.holds,
            "nothing",
            f"{asked} queries, {setting.models} encoders of the thief's own on rows of the same distribution",
            "how the encoder was made",
            described.tags,
        ),
        setting.asked("models", "train_rows", "encoder_steps"),
    )
    if subject.train is None:
        return skipped(blank, f"{described.path} pre-trains encoders in many ways: give the subject its `train`")
    data = raw(subject.train, drawn(subject.train, min(setting.train_rows, 2 * MOST), setting.seed))
    if data[0].ndim != 4:
        return skipped(blank, f"{described.path} pre-trains encoders of images, and the training rows are none")
    if len(data[1]) < LEAST or setting.models < 12:
        raise ValueError(f"expected {LEAST} rows and 12 encoders or more, got {len(data[1])} and {setting.models}")
    traits = _traits(cast("list[str]", described.params["traits"]))
    mine, theirs = ((x.to(setting.device), y.to(setting.device)) for x, y in halved(data))
    q = questions(
        floats(raw(subject.test, drawn(subject.test, IMAGES, setting.seed))[0]).to(setting.device), IMAGES, setting.seed
    )
    own, ways = _population(setting, mine, traits, setting.models, 0)
    held, truth = _population(setting, theirs, traits, setting.models // 2, 1)
    evidence = {f"truth_{name}": which for name, which in truth.items()}
    wrong = {t: aside(which, len(WAYS[t]), setting.seed) for t, which in ways.items()}
    learnt = taught(_seen(own, q), ways, len(q))
    evidence |= _right(setting, learnt, held, truth, q, "right")
    evidence |= _right(setting, taught(_seen(own, q), wrong, len(q)), held, truth, q, "shuffled")
    walls = [[guards(one) for one in side] for side in (own, held)]
    for name in walls[0][0]:
        behind = [[one[name] for one in side] for side in walls]
        evidence |= _right(setting, taught(_seen(behind[0], q), ways, len(q)), behind[1], truth, q, name)
    if not refusal(setting):
        subjects = scene(setting)
        scores = _guess(setting, learnt, answering(subjects.encoder), q, traits)
        evidence |= {f"guess_{name}": scores[name].exp() for name in traits}
        known = {name: which for name, which in _known(setting, subjects).items() if name in traits}
        evidence |= {f"seen_{name}": torch.tensor([WAYS[name].index(which)]) for name, which in known.items()}
    return _told(blank, evidence, traits, len(q))


def _known(setting: Setting, seen: Scene) -> dict[str, str]:
    """What is known of how the subject's encoder was made: by its modules, and, if it was pre-trained here, by how."""
    known, method = dict[str, str](), describe(setting.pretraining)
    if isinstance(seen.encoder, nn.Module) and (built := network(seen.encoder)):
        known["network"] = built
    if not seen.own and method.path.rpartition("/")[2] in WAYS["algorithm"]:
        known["algorithm"] = method.path.rpartition("/")[2]
        known["crops"] = "strong" if float(str(method.params["least"])) < 0.4 else "mild"
    return known


def network(encoder: nn.Module) -> str:
    """Which of the kinds of network an encoder surely is; empty if a module unknown here may go around its parts."""
    kinds = {type(part) for part in encoder.modules()}
    if nets.ResidualBlock in kinds:
        return "residual"
    if {type(part) for part in encoder.modules() if list(part.children())} - {nn.Sequential}:
        return ""
    return "convolutional" if nn.Conv2d in kinds else "dense"


def _traits(named: list[str]) -> tuple[str, ...]:
    if not named or not set(named) <= set(WAYS):
        raise ValueError(f"expected traits out of {', '.join(WAYS)}, got {', '.join(named) or 'none'}")
    return tuple(dict.fromkeys(named))


def _population(
    setting: Setting, rows: Rows, traits: tuple[str, ...], models: int, side: int
) -> tuple[list[nn.Module], dict[str, Tensor]]:
    """So many encoders of `rows`, with the draws of one `side`, and which value of every trait each of them has."""
    start = 1_000_000 * setting.seed + 10_000 * side
    ways, out = drawn_ways(traits, models, start % 2**63), list[nn.Module]()
    for index in range(models):
        way = {name: WAYS[name][int(which[index])] for name, which in ways.items()}
        out.append(made(way, rows, (start + index) % 2**63))
        setting.told((0.6, 0.3)[side] * (index + 1) / models + (0, 0.6)[side])
    return out, ways


def _seen(encoders: list[nn.Module], q: Tensor) -> Tensor:
    return torch.stack([summary(embedded(one, q)) for one in encoders])


def _guess(
    setting: Setting, learnt: Metamodel, oracle: Oracle, q: Tensor, traits: tuple[str, ...]
) -> dict[str, Tensor]:
    """What the method says of one oracle; a `ValueError` for scores that are none."""
    began = time.perf_counter()
    given: dict[str, Any] = {"metamodel": learnt, "traits": traits}
    found = cast(Guessed, setting.method(oracle, q, **given))
    setting.meter.method_seconds += time.perf_counter() - began
    for name in traits:
        if found[name].shape != (len(WAYS[name]),) or bool(found[name].isnan().any()):
            raise ValueError(f"{setting.described.path}: expected {len(WAYS[name])} scores of {name}, got others")
    return {name: found[name].detach().cpu() for name in traits}


def _right(
    setting: Setting, learnt: Metamodel, held: list[nn.Module], truth: Mapping[str, Tensor], q: Tensor, name: str
) -> dict[str, Tensor]:
    """Which encoders' traits are told, each `(M,)`."""
    found = [_guess(setting, learnt, answering(one), q, tuple(truth)) for one in held]
    return {f"{name}_{t}": torch.stack([one[t] for one in found]).argmax(1) == which for t, which in truth.items()}


def chance(evidence: Mapping[str, Tensor], trait: str) -> float:
    """How often the commonest value of a trait is right about the encoders measured."""
    truth = evidence[f"truth_{trait}"]
    return float(truth.bincount().max()) / len(truth)


def _told(blank: Trial, evidence: dict[str, Tensor], traits: tuple[str, ...], queries: int) -> Trial:
    ways = [key.removesuffix(f"_{traits[0]}") for key in evidence if key.endswith(f"_{traits[0]}")]
    ways = [way for way in ways if way not in ("truth", "guess", "seen")]
    common = sum(chance(evidence, t) for t in traits) / len(traits)
    found = dict[str, Estimate]()
    for way in ways:
        told, beyond = ("told", "beyond") if way == "right" else (f"{way}_told", f"{way}_beyond")
        evidence[told] = torch.stack([evidence[f"{way}_{t}"] for t in traits]).float().mean(0)
        evidence[beyond] = evidence[told] - common
        found |= {name: stats.mean(evidence[name], name) for name in (told, beyond)}
        found |= {f"{way}_{t}": stats.share(evidence[f"{way}_{t}"], f"{way}_{t}") for t in traits}
    level = 1 - (1 - STRICT) / len(traits)
    more = [t for t in traits if stats.share(evidence[f"shuffled_{t}"], t, level).low > chance(evidence, t)]
    says = f"It tells {found['shuffled_told'].value:.1%} of the traits, where chance is {common:.1%}"
    says += f", and surely more than chance of {', '.join(more)}." if more else "."
    return replace(
        blank,
        status="inconclusive" if more else "ok",
        reason=says if more else "",
        checks=(Check(CONTROL, not more, says, found["shuffled_told"].value),),
        estimates=found,
        evidence=evidence,
        cost=Cost(queries=queries),
    )
