"""A guess at how models were made, by how often it is right about models that nothing was learnt from.

The rows at hand are divided: a thief trains models on one half and learns to tell their traits; the guess is then tried
on models of the other half, as wide as those of the thief and wider. Beside it stand guesses with less to go by: the
leading score alone and rounded, labels alone, and a metamodel that was told the traits of the wrong models.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor, nn

from buckler import stats
from buckler.data import Data, Rows, as_tensors, count, drawn, split
from buckler.kinds import Guessed
from buckler.target import Oracle
from buckler.theft._door import door, shown_to
from buckler.theft._making import WAYS, WIDER, WIDTHS, Metamodel, drawn_ways, made, taught
from buckler.theft._scene import accounted
from buckler.theft._setting import Setting
from buckler.threat import Threat
from buckler.trial import Check, Trial

FEWEST = 80
"""The fewest rows that are divided between a thief and other models."""
LESS = {"top": "top1-digits2", "labels": "labels"}
"""What else might be revealed."""
CONTROL = "a metamodel taught with the traits of other models tells no more than chance"
STRICT = 0.999
"""The level at which the control is called out, over all traits."""


@dataclass(frozen=True)
class _Made:
    """Models, and which value of every trait each of them has, `(M,)`."""

    models: Sequence[nn.Module]
    ways: Mapping[str, Tensor]

    def asked(self, x: Tensor, reveals: str) -> Tensor:
        """What they reveal of `x` `(Q, ...)`: `(M, Q, K)` or `(M, Q)`."""
        return torch.stack([door(model, reveals)(x) for model in self.models])


def guessed(setting: Setting) -> Trial:
    """How often each trait is told; see `evaluate.evaluate`."""
    return accounted(setting, _begun, _measured)


def _begun(setting: Setting) -> Trial:
    subject, described = setting.subject, setting.described
    reveals = shown_to(described.holds, setting.reveals, subject.model)
    reveals = "scores" if reveals == "logits" else reveals  # which say as much
    questions = max(setting.queries)
    threat = Threat(
        reveals,
        "nothing",
        f"{questions} queries, {setting.models} models of the thief's own on rows of the same distribution",
        "how the model was made",
        described.tags,
    )
    asked: dict[str, object] = {
        "queries": [questions],
        "reveals": reveals,
        "pool": setting.pool,
        "models": setting.models,
        "train_rows": setting.train_rows,
        "training_epochs": setting.training_epochs,
    }
    blank = setting.blank(threat, asked)
    if setting.pool == "train" and subject.train is None:
        return replace(blank, reason="a pool of training rows needs them: give the subject its `train`")
    data, _ = _divided(setting)
    if min(count(data), setting.train_rows) < FEWEST:
        return replace(blank, reason=f"{described.path} divides rows to train on: give the subject {FEWEST} or more")
    return blank


def _divided(setting: Setting) -> tuple[Data, Data]:
    """What models learn from, and what questions are taken from."""
    others, apart = split(setting.subject.test, 0.5, seed=setting.seed)
    return others if setting.subject.train is None else setting.subject.train, apart


def _measured(setting: Setting, blank: Trial) -> Trial:
    subject, reveals = setting.subject, blank.threat.sees
    data, apart = _divided(setting)
    x, y = (part.to(setting.device) for part in as_tensors(data, drawn(data, setting.train_rows, setting.seed)))
    traits = _traits(cast("list[str]", setting.described.params["traits"]), x, setting.models)
    q = _questions(setting, x if setting.pool == "train" else as_tensors(apart)[0].to(x), max(setting.queries))
    answers = door(subject.model, reveals)(q)
    classes = answers.shape[1] if answers.ndim == 2 else 1 + int(torch.cat([y.cpu(), answers.cpu()]).max())
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(setting.seed)).to(setting.device)
    mine, theirs = ((x[half], y[half]) for half in order.chunk(2))
    own = _population(setting, mine, traits, classes, setting.models, WIDTHS, 0)
    held = _population(setting, theirs, traits, classes, setting.models // 2, WIDTHS, 1)
    wider = _population(setting, theirs, traits, classes, setting.models // 2, WIDER, 2)
    evidence = {f"truth_{name}": which for name, which in held.ways.items()}
    evidence |= {
        f"seen_{name}": torch.tensor([which]) for name, which in _seen(subject.model).items() if name in traits
    }
    learnt = taught(own.asked(q, reveals), own.ways, classes)
    evidence |= _right(setting, learnt, held, q, reveals, "right") | _right(setting, learnt, wider, q, reveals, "wider")
    wrong = taught(own.asked(q, reveals), {t: aside(t, which, setting.seed) for t, which in own.ways.items()}, classes)
    evidence |= _right(setting, wrong, held, q, reveals, "shuffled")
    for name, less in LESS.items():
        if reveals not in ("labels", less):
            evidence |= _right(setting, taught(own.asked(q, less), own.ways, classes), held, q, less, name)
    own_answers = Oracle(lambda _: answers, "labels" if answers.ndim == 1 else "scores", batch=len(q))
    scores = _guess(setting, learnt, own_answers, q, traits)
    evidence |= {f"guess_{name}": scores[name].exp() for name in traits}
    evidence["accuracy"] = _accuracy(held, mine)
    return _told(blank, evidence, traits)


def _traits(named: Sequence[str], x: Tensor, models: int) -> tuple[str, ...]:
    """Those of the named traits that models of rows `x` can have; a `ValueError` for unknown ones, or too few models.

    Of rows that are no images all models are dense.
    """
    if not named or not set(named) <= set(WAYS):
        raise ValueError(f"expected traits out of {', '.join(WAYS)}, got {', '.join(named) or 'none'}")
    if models < 8:
        raise ValueError(f"expected 8 models or more, for every value of a trait to be held by some, got {models}")
    return tuple(name for name in dict.fromkeys(named) if x.ndim == 4 or name != "family")


def _questions(setting: Setting, rows: Tensor, many: int) -> Tensor:
    """Rows, then noise: half of each, more noise where rows are few, and nothing else if the pool is noise."""
    real = rows[: 0 if setting.pool == "noise" else many // 2]
    noise = torch.rand(many - len(real), *rows.shape[1:], generator=torch.Generator().manual_seed(setting.seed))
    return torch.cat([real, noise.to(rows)])


def _population(
    setting: Setting, rows: Rows, traits: Sequence[str], classes: int, models: int, widths: Sequence[int], side: int
) -> _Made:
    """So many models of `rows`, with the draws of one `side`."""
    start = 1_000_000 * setting.seed + 10_000 * side
    ways, out = drawn_ways(traits, models, start % 2**63), list[nn.Module]()
    for index in range(models):
        way = {name: WAYS[name][int(which[index])] for name, which in ways.items()}
        out.append(made(way, rows, classes, widths, setting.training_epochs, (start + index) % 2**63))
        setting.told((0, 0.5, 0.7)[side] + (0.5, 0.2, 0.2)[side] * (index + 1) / models)
    return _Made(out, ways)


def _guess(setting: Setting, learnt: Metamodel, oracle: Oracle, q: Tensor, traits: Sequence[str]) -> dict[str, Tensor]:
    """What the method says of one oracle; a `ValueError` for scores that are none."""
    began = time.perf_counter()
    given: dict[str, Any] = {"metamodel": learnt, "traits": tuple(traits)}
    found = cast(Guessed, setting.method(oracle, q, **given))
    setting.meter.method_seconds += time.perf_counter() - began
    for name in traits:
        if found[name].shape != (len(WAYS[name]),) or bool(found[name].isnan().any()):
            raise ValueError(
                f"{setting.described.path}: expected {len(WAYS[name])} scores of {name}, got {found[name]}"
            )
    return {name: found[name].detach().cpu() for name in traits}


def _right(setting: Setting, learnt: Metamodel, held: _Made, q: Tensor, reveals: str, name: str) -> dict[str, Tensor]:
    """Which models' traits are told, each `(M,)`."""
    traits = list(held.ways)
    found = [_guess(setting, learnt, door(model, reveals), q, traits) for model in held.models]
    return {f"{name}_{t}": torch.stack([one[t] for one in found]).argmax(1) == held.ways[t] for t in traits}


def _seen(model: nn.Module | Oracle) -> dict[str, int]:
    """What can be seen of how the subject's own model was made, where it is given: by the kinds of its modules."""
    if isinstance(model, Oracle):
        return {}
    kinds = {
        "family": (nn.Conv1d, nn.Conv2d, nn.Conv3d),
        "norm": (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d),
        "dropout": (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d),
    }
    return {name: int(any(isinstance(part, kind) for part in model.modules())) for name, kind in kinds.items()}


def _accuracy(held: _Made, rows: Rows) -> Tensor:
    """How many of `rows`, which they did not learn from, the models answer rightly: a share for each, `(M,)`."""
    return torch.stack([(door(model, "labels")(rows[0]) == rows[1]).float().mean().cpu() for model in held.models])


def aside(trait: str, which: Tensor, seed: int) -> Tensor:
    """Other values of a trait for models that have `which` `(M,)`: of those with one value, as many for every value.

    In any other order the values would go with the true ones a little, and what tells those would be right too often.
    """
    out, draw = torch.empty_like(which), torch.Generator().manual_seed(seed + 1)
    for value in range(len(WAYS[trait])):
        rows = (which == value).nonzero().squeeze(1)
        out[rows[torch.randperm(len(rows), generator=draw)]] = torch.arange(len(rows)) % len(WAYS[trait])
    return out


def chance(evidence: Mapping[str, Tensor], trait: str) -> float:
    """How often the commonest value of a trait is right about the models measured."""
    truth = evidence[f"truth_{trait}"]
    return float(truth.bincount().max()) / len(truth)


def _told(blank: Trial, evidence: dict[str, Tensor], traits: Sequence[str]) -> Trial:
    kinds = [name for name in ("right", "wider", "shuffled", *LESS) if f"{name}_{traits[0]}" in evidence]
    told = {name: torch.stack([evidence[f"{name}_{t}"] for t in traits]).float().mean(0) for name in kinds}
    common = sum(chance(evidence, t) for t in traits) / len(traits)
    evidence |= {f"told_{name}": shares for name, shares in told.items()}
    evidence["beyond"] = told["right"] - common
    evidence |= {f"change_{name}": told[name] - told["right"] for name in LESS if name in told}
    means = ("beyond", "accuracy", *(name for name in evidence if name.startswith(("told_", "change_"))))
    found = {name: stats.mean(evidence[name], name) for name in means}
    found |= {f"right_{t}": stats.share(evidence[f"right_{t}"], f"right_{t}") for t in traits}
    level = 1 - (1 - STRICT) / len(traits)
    more = [t for t in traits if stats.share(evidence[f"shuffled_{t}"], t, level).low > chance(evidence, t)]
    says = f"It tells {found['told_shuffled'].value:.1%} of the traits, where chance is {common:.1%}"
    says += f", and surely more than chance of {', '.join(more)}." if more else "."
    return replace(
        blank,
        status="inconclusive" if more else "ok",
        reason=says if more else "",
        checks=(Check(CONTROL, not more, says, found["told_shuffled"].value),),
        estimates=found,
        evidence=evidence,
    )
