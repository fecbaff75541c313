"""Data traced to an encoder: by how many owners of images that it learnt from, and by how many others.

Owners are drawn: each published some of the rows that the encoder learnt from, and kept others back. They test the
encoder, and one that learnt from neither, which they must not claim. And owners whose rows it never saw, divided by
chance all the same, test the encoder, and must not claim it either.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor, nn

from buckler import stats
from buckler.claims import binomial_tail, by_chance
from buckler.data import Rows
from buckler.encoders._inferred import stopped_early
from buckler.encoders._scene import LEAST, halved, pretrained, refusal, tasks
from buckler.encoders._setting import Setting
from buckler.encoders._stolen import less, outfitted, worth
from buckler.evaluation import skipped
from buckler.kinds import Claim, Owned
from buckler.method import left_open
from buckler.target import Oracle
from buckler.threat import Threat
from buckler.trial import Check, Cost, Trial

LEVEL = 0.01
"""At or below which p-value an encoder is said to have learnt from an owner's images."""
PLAUSIBLE = 0.025
"""How improbable so many false claims must be, at most, for the method to be wrong."""
OWNERS = 20
MOST = 200
"""Images that an owner publishes at most; as many are kept back."""
FEWER = 4
"""Owners with so many times fewer images are measured as well."""
STOP = 0.3
"""After which share of the steps an encoder is stopped, where encoders are pre-trained here."""
NOBODY = "no more owners claim what did not learn from their images than by chance"


def traced(setting: Setting) -> Trial:
    """The claims of owners whose images were learnt from, and of those whose were not; see `evaluate.evaluate`."""
    described = setting.described
    within = f"{described.params.get('asked', 1)} queries per image"
    threat = Threat("features", "nothing", within, "to learn from images unnoticed", described.tags)
    blank = setting.blank(threat, setting.asked("rows", "train_rows", "encoder_steps"))
    if reason := refusal(setting, learnt=True):
        return skipped(blank, reason)
    seen, setting = outfitted(setting)
    learnt, others = cast(Rows, seen.learnt), seen.test if seen.own else seen.spare
    mine, theirs = halved(seen.spare if seen.own else seen.test)
    many = min(MOST, setting.rows // 2, len(learnt[1]), len(others[1]) // 2)
    if min(many, len(mine[1]), len(theirs[1])) < LEAST:
        return skipped(blank, f"expected {LEAST} images for every owner or more, got {many}: ask for more rows")
    reference, independent = (
        pretrained(setting, rows, seed=setting.seed + 1 + turn) for turn, rows in enumerate((mine, theirs))
    )
    stopped = None if seen.own else stopped_early(setting, learnt, STOP)
    setting.told(0.6)
    p, queries, before = dict[str, list[float]](), 0, _asked(seen.encoder)
    for owner in range(OWNERS):
        draw = torch.Generator().manual_seed(setting.seed + owner)
        here, there = (torch.randperm(len(rows[1]), generator=draw) for rows in (learnt, others))
        few = max(LEAST, many // FEWER)
        whole, small = (
            _owned(setting, _some(learnt, here[:size]), _some(others, there[:size]), reference, owner)
            for size in (many, few)
        )
        parts = _some(others, there[:many]), _some(others, there[many : 2 * many])
        claims = {
            "traced": (whole, seen.encoder),
            f"traced_of_{few}": (small, seen.encoder),
            "independent": (whole, independent),
            "spared": (_owned(setting, *parts, reference, owner), seen.encoder),
            **({} if stopped is None else {"stopped": (whole, stopped)}),
        }
        for name, (made, suspect) in claims.items():
            claim = _claimed(setting, made, suspect)
            p.setdefault(name, []).append(claim.p)
            queries += claim.queries if suspect is seen.encoder else 0  # what was pre-trained here is not asked
        setting.told(0.6 + 0.4 * (owner + 1) / OWNERS)
    evidence = {f"p_{name}": torch.tensor(values) for name, values in p.items()}
    evidence["p_false"] = torch.cat([evidence["p_independent"], evidence["p_spared"]])
    claimed = {name.removeprefix("p_"): values <= LEVEL for name, values in evidence.items()}
    evidence["images"] = torch.tensor([many])
    task = tasks(setting, seen)[:1]
    claimed |= worth(seen.encoder, task, setting.seed)
    if stopped is not None:
        claimed |= worth(stopped, task, setting.seed, "stopped_")
        evidence["stopped_change"] = less(claimed, "stopped_few_correct", "few_correct")
    found = {name: stats.share(flags, name) for name, flags in claimed.items()}
    if stopped is not None:
        found["stopped_change"] = stats.difference(evidence["stopped_change"], "stopped_change")
    hits = int(claimed["false"].sum())
    says = f"{hits} of {2 * OWNERS} owners claim an encoder that did not learn from their images, at {LEVEL:.0%}."
    check = Check(NOBODY, not wrong(claimed), says, float(hits))
    return replace(
        blank,
        status="ok",
        checks=(check,),
        estimates=found,
        evidence=evidence | claimed,
        cost=Cost(queries=_asked(seen.encoder) - before if isinstance(seen.encoder, Oracle) else queries),
    )


def _asked(encoder: nn.Module | Oracle) -> int:
    return encoder.asked if isinstance(encoder, Oracle) else 0


def wrong(claimed: Mapping[str, Tensor]) -> bool:
    """Whether more is claimed that did not learn from an owner's images than chance makes plausible.

    Of one encoder, owners who divide by chance what it never saw have independent p-values; those whose images others
    learnt from have not, because their images are drawn from the same two sets.
    """
    spared, others = ((int(claimed[name].sum()), len(claimed[name]), LEVEL) for name in ("spared", "independent"))
    return 2 * min(binomial_tail(*spared), by_chance(*others)) <= PLAUSIBLE


def _some(data: Rows, rows: torch.Tensor) -> Rows:
    return data[0][rows], data[1][rows]


def _owned(setting: Setting, published: Rows, kept: Rows, reference: nn.Module, owner: int) -> Owned:
    given: dict[str, Any] = {"unseen": kept, "reference": reference, "seed": setting.seed + owner}
    began = time.perf_counter()
    made = setting.method(published, **{name: given[name] for name in left_open(setting.method, *given)})
    setting.meter.method_seconds += time.perf_counter() - began
    return made


def _claimed(setting: Setting, made: Owned, suspect: nn.Module | Oracle) -> Claim:
    began = time.perf_counter()
    claim = made.claim(suspect)
    setting.meter.method_seconds += time.perf_counter() - began
    if not 0 < claim.p <= 1:
        raise ValueError(f"{setting.described.path}: expected a p-value above 0, at most 1, got {claim.p}")
    return claim
