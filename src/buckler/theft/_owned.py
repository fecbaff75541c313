"""An owner's claim, by whom it is made of: the owner's own model, what thieves make of it, and models of others.

The training rows are divided by chance: the owner learns from half of them, keeps some that nobody learns from, and the
rest belong to others. From those a thief tunes or copies the owner's model, and independent models learn from them.
"""

from __future__ import annotations

import copy
import time
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from buckler import stats
from buckler.claims import by_chance, pruned, quantised
from buckler.data import Rows, as_tensors, batches, count, drawn, raw
from buckler.imported import usable
from buckler.kinds import Claim, Owned
from buckler.method import left_open
from buckler.nets import where
from buckler.stats import Estimate
from buckler.target import Oracle, frozen
from buckler.theft._setting import Setting
from buckler.threat import Threat
from buckler.train import fit, started
from buckler.trial import Check, Cost, Trial

LEVEL = 0.01
"""At or below which p-value a suspect is claimed."""
PLAUSIBLE = 0.025
"""How improbable so many claims of independent models must be, at most, for the method to be wrong."""
TINY = 1e-30
"""What smaller p-values are kept as."""
INDEPENDENT = 5
LEAST = 60
"""The fewest training rows that are divided."""
BATCH = 64
PRUNED, TUNED, TUNING = 0.5, 5, 0.01
"""The share of weights that pruning takes, and for how many epochs and at which rate a thief tunes."""
NOBODY = "no more independent models are claimed than by chance"
OWN, SAME, OTHERS = "own", "unmarked", "independent"
REMOVALS = {
    "tuned": "tuned further",
    "pruned": "pruned by half",
    "quantised": "rounded to eight bits",
    "extracted": "copied through answers",
}
"""What a thief does, with its name for a reader."""


@dataclass(frozen=True)
class _Parts:
    """Training rows of the owner, rows that nobody learns from, rows of others, and test rows to measure on."""

    own: Rows
    unseen: Rows
    others: Rows
    test: Rows


def owned(setting: Setting) -> Trial:
    """The claim of every suspect, and what marking costs; see `evaluate.evaluate`."""
    described = setting.described
    threat = Threat("weights", "weights", _means(setting), "not to be shown as a thief", described.tags)
    asked = setting.asked("rows", "train_rows", "training_epochs")
    blank = setting.blank(threat, asked)
    if reason := _refusal(setting):
        return replace(blank, reason=reason)
    parts = _divided(setting)
    plain = _trained(setting, parts.own, 0)
    made = _made(setting, plain, parts)
    setting.told(0.5)
    victim = made.model if made.model is not None else plain if made.data is None else _trained(setting, made.data, 0)
    setting.meter.watch(victim)
    suspects = {OWN: [victim], **_thieves(setting, victim, parts.others)}
    if victim is not plain:
        suspects[SAME] = [plain]
    setting.told(0.7)
    suspects[OTHERS] = [_trained(setting, parts.others, 1 + index) for index in range(INDEPENDENT)]
    evidence, queries = {"label": parts.test[1]}, 0
    for index, (group, models) in enumerate(suspects.items()):
        claims = [_claimed(setting, made, model) for model in models]
        evidence[f"p_{group}"] = torch.tensor([max(claim.p, TINY) for claim in claims])
        evidence[f"claimed_{group}"] = evidence[f"p_{group}"] <= LEVEL
        evidence[f"correct_{group}"] = _right(models[0], parts.test)
        queries += sum(claim.queries for claim in claims)
        setting.told(0.8 + 0.2 * (index + 1) / len(suspects))
    return _measured(blank, evidence, queries)


def _means(setting: Setting) -> str:
    return f"{', '.join(REMOVALS.values())}, with rows of the same distribution"


def _refusal(setting: Setting) -> str:
    """Why the subject does not admit the method, or nothing."""
    subject, path = setting.subject, setting.described.path
    if subject.train is None:
        return f"{path} is measured by training: give the subject its `train`"
    if "net" in setting.described.knobs and subject.net is None:
        return f"{path} trains a network: give the subject its `net`"
    if subject.recipe is None and subject.net is None:
        return f"{path} is measured by training: give the subject its `recipe` or its `net`"
    if min(count(subject.train), setting.train_rows) < LEAST:
        return f"{path} is measured by training on halves: give the subject {LEAST} training rows or more"
    return ""


def _divided(setting: Setting) -> _Parts:
    train = setting.subject.train
    if train is None:
        raise TypeError("expected training data")
    pool = drawn(train, setting.train_rows, setting.seed)
    pool = pool[torch.randperm(len(pool), generator=torch.Generator().manual_seed(setting.seed + 1))]
    own, unseen = len(pool) // 2, len(pool) // 6
    parts = pool.split([own, unseen, len(pool) - own - unseen])
    return _Parts(*(raw(train, part) for part in parts), test=as_tensors(setting.subject.test, setting.rows))


def _trained(setting: Setting, data: Rows, draw: int) -> nn.Module:
    """What the subject's own training makes of `data` with the draws `draw`: its recipe, or its network in the loop."""
    subject, seed = setting.subject, (1_000 * setting.seed + draw) % 2**63
    data = data[0].clone(), data[1].clone()
    if subject.net is not None:
        model = usable(started(subject.net, seed), "net").to(setting.device)
        setting.meter.watch(model)
        fit(model, data, epochs=setting.training_epochs, batch=BATCH, seed=seed)
    elif subject.recipe is not None:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            model = usable(subject.recipe(data), "recipe").to(setting.device).eval()
    else:
        raise TypeError("expected a recipe or a net")
    setting.meter.watch(model)
    return model


def _made(setting: Setting, plain: nn.Module, parts: _Parts) -> Owned:
    """What the owner keeps and made, by the method, of a model trained as usual, or of the rows that it learnt from."""
    given: dict[str, Any] = {
        "net": setting.subject.net,
        "seed": setting.seed,
        "unseen": parts.unseen,
        "training": partial(_trained, setting),
    }
    held = (parts.own,) if setting.described.holds == "data" else (plain, parts.own)
    began = time.perf_counter()
    made = setting.method(*held, **{name: given[name] for name in left_open(setting.method, *given)})
    setting.meter.method_seconds += time.perf_counter() - began
    return made


def _claimed(setting: Setting, made: Owned, suspect: nn.Module) -> Claim:
    """The claim of a suspect; a `ValueError` for a p-value that is none."""
    began = time.perf_counter()
    claim = made.claim(suspect)
    setting.meter.method_seconds += time.perf_counter() - began
    if not 0 <= claim.p <= 1:
        raise ValueError(f"{setting.described.path}: expected a p-value in [0, 1], got {claim.p}")
    return claim


def _thieves(setting: Setting, victim: nn.Module, rows: Rows) -> dict[str, list[nn.Module]]:
    """What a thief makes of the owner's model, to be rid of its mark or to have a copy, with `rows` of their own."""
    tuned = fit(copy.deepcopy(victim), rows, epochs=TUNED, rate=TUNING, batch=BATCH, seed=setting.seed)
    oracle = Oracle(victim, "scores" if setting.subject.net is not None else "labels")
    x, _ = as_tensors(rows)
    copied = _trained(setting, (rows[0], oracle(x.to(setting.device)).cpu()), 500)
    return {
        "tuned": [tuned],
        "pruned": [pruned(victim, PRUNED)],
        "quantised": [quantised(victim)],
        "extracted": [copied],
    }


def _right(model: nn.Module, test: Rows) -> Tensor:
    """Which test rows are answered rightly: `(N,)`."""
    with torch.no_grad(), frozen(model):
        said = torch.cat([model(x.to(where(model))).argmax(1).cpu() for x, _ in batches(test, 512)])
    return said == test[1]


def _measured(blank: Trial, evidence: dict[str, Tensor], queries: int) -> Trial:
    found: dict[str, Estimate] = {"false_claims": stats.share(evidence[f"claimed_{OTHERS}"], f"claimed_{OTHERS}")}
    for group in (OWN, *REMOVALS, OTHERS):
        found[f"accuracy_{group}"] = stats.share(evidence[f"correct_{group}"], f"correct_{group}")
    if f"p_{SAME}" in evidence:
        evidence["lost"] = evidence[f"correct_{SAME}"].to(torch.int8) - evidence[f"correct_{OWN}"].to(torch.int8)
        found["accuracy_lost"] = stats.difference(evidence["lost"], "lost")
    hits = int(evidence[f"claimed_{OTHERS}"].sum())
    says = f"{hits} of {INDEPENDENT} models that have nothing to do with the owner's are claimed at {LEVEL:.0%}."
    check = Check(NOBODY, by_chance(hits, INDEPENDENT, LEVEL) > PLAUSIBLE, says, float(hits))
    return replace(blank, status="ok", checks=(check,), estimates=found, evidence=evidence, cost=Cost(queries=queries))
