"""An owner's claim, by whom it is made of: the owner's own encoder, what thieves make of it, and encoders of others.

From rows that the owner did not learn from a thief tunes or copies the owner's encoder, and independent encoders are
pre-trained on them; one more is pre-trained, by other draws, on the owner's own rows.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor, nn

from buckler import stats
from buckler.catalog import find
from buckler.claims import by_chance, pruned, quantised, secret
from buckler.data import Rows
from buckler.embedding import embedded
from buckler.encoders._scene import Scene, Task, pretrained, refusal, tasks
from buckler.encoders._setting import Setting
from buckler.encoders._stolen import less, outfitted, robbed, worth
from buckler.evaluation import skipped
from buckler.kinds import Claim, Owned
from buckler.method import left_open
from buckler.nets import where
from buckler.stats import Estimate
from buckler.target import Oracle
from buckler.threat import Threat
from buckler.train import fit, started
from buckler.trial import Check, Cost, Trial

LEVEL = 0.001
"""At or below which p-value a suspect is claimed."""
PLAUSIBLE = 0.025
"""How improbable so many claims of independent encoders must be, at most, for the method to be wrong."""
REFERENCES = 1000
"""Draws from here on are those of encoders that a method has made to compare with."""
PRUNED, TUNED, TUNING = 0.5, 5, 0.01
"""The share of weights that pruning takes, and for how many epochs and at which rate a thief tunes with labels."""
NOBODY = "no more independent encoders are claimed than by chance"
OWN, SAME, OTHERS = "own", "same", "independent"
REMOVALS = {
    "tuned": "tuned with labels",
    "pruned": "pruned by half",
    "quantised": "rounded to eight bits",
    "turned": "with its features turned",
    "stolen": "copied through features",
    "contrasted": "copied by contrast",
}
"""What a thief does, with its name for a reader."""


def owned(setting: Setting) -> Trial:
    """The claim of every suspect, and what marking costs; see `evaluate.evaluate`."""
    described = setting.described
    means = f"{', '.join(REMOVALS.values())}, with images of the same distribution"
    threat = Threat("weights", "weights", means, "not to be shown as a thief", described.tags)
    blank = setting.blank(threat, setting.asked("rows", "train_rows", "encoder_steps", "models"))
    if reason := refusal(setting, learnt=True, white=True):
        return skipped(blank, reason)
    seen, setting = outfitted(setting)
    if not isinstance(seen.encoder, nn.Module):
        raise TypeError("expected an encoder that is a module")
    task = tasks(setting, seen)[:1]
    made = _made(setting, seen.encoder, cast(Rows, seen.learnt))
    victim = seen.encoder if made.model is None else made.model
    setting.told(0.2)
    suspects = {OWN: [victim], **_thieves(setting, victim, seen, task[0])}
    setting.told(0.4)
    if not seen.own:
        suspects[SAME] = [pretrained(setting, cast(Rows, seen.learnt), seed=setting.seed + 1)]
    suspects[OTHERS] = [pretrained(setting, seen.spare, seed=setting.seed + 1 + one) for one in range(setting.models)]
    setting.told(0.8)
    evidence, queries = dict[str, Tensor](), 0
    for group, encoders in suspects.items():
        claims = [_claimed(setting, made, encoder) for encoder in encoders]
        evidence[f"p_{group}"] = torch.tensor([claim.p for claim in claims])
        evidence[f"claimed_{group}"] = evidence[f"p_{group}"] <= LEVEL
        evidence |= worth(encoders[0], task, setting.seed, f"{group}_")
        queries += sum(claim.queries for claim in claims)
    if made.model is not None:
        evidence |= worth(seen.encoder, task, setting.seed, "unmarked_")
        evidence["lost"] = less(evidence, "own_few_correct", "unmarked_few_correct")
    check = _nobody(evidence)
    return replace(
        blank,
        status="ok",
        checks=(check,),
        estimates=_estimated(evidence),
        evidence=evidence,
        cost=Cost(queries=queries),
    )


def _made(setting: Setting, encoder: nn.Module, learnt: Rows) -> Owned:
    def training(data: Rows, draw: int) -> nn.Module:
        return pretrained(setting, data, seed=setting.seed + REFERENCES + draw)

    given: dict[str, Any] = {"seed": setting.seed, "training": training}
    began = time.perf_counter()
    made = setting.method(encoder, learnt, **{name: given[name] for name in left_open(setting.method, *given)})
    setting.meter.method_seconds += time.perf_counter() - began
    return made


def _claimed(setting: Setting, made: Owned, suspect: nn.Module) -> Claim:
    """The claim of a suspect; a `ValueError` for a p-value that is none."""
    claim = made.claim(suspect)
    if not 0 < claim.p <= 1:
        raise ValueError(f"{setting.described.path}: expected a p-value above 0, at most 1, got {claim.p}")
    return claim


def _thieves(setting: Setting, victim: nn.Module, seen: Scene, task: Task) -> dict[str, list[nn.Module]]:
    """What a thief makes of the owner's encoder, with the spare rows of `seen` and their labels."""
    wide = embedded(victim, seen.spare[0][:2]).shape[1]
    head = started(lambda: nn.Linear(wide, task.classes), setting.seed).to(where(victim))
    whole = nn.Sequential(copy.deepcopy(victim), head)
    tuned = fit(whole, seen.spare, epochs=TUNED, rate=TUNING, batch=64, seed=setting.seed)
    turn = torch.linalg.qr(torch.randn(wide, wide, generator=secret(setting.seed, "thief"))).Q
    last = nn.Linear(wide, wide, bias=False)
    last.weight = nn.Parameter(turn)
    copies = {
        name: [robbed(setting, find(path), Oracle(victim, "features"), seen)[0]]
        for name, path in {"stolen": "encoders/stolen_encoder", "contrasted": "encoders/cont_steal"}.items()
    }
    return {
        "tuned": [cast("nn.Sequential", tuned)[0]],
        "pruned": [pruned(victim, PRUNED)],
        "quantised": [quantised(victim)],
        "turned": [nn.Sequential(copy.deepcopy(victim), last.to(where(victim))).eval()],
        **copies,
    }


def _estimated(evidence: Mapping[str, Tensor]) -> dict[str, Estimate]:
    found = {"false_claims": stats.share(evidence[f"claimed_{OTHERS}"], f"claimed_{OTHERS}")}
    found |= {
        name.replace("correct", "accuracy"): stats.share(values, name)
        for name, values in evidence.items()
        if name.endswith("correct")
    }
    return found | ({"lost": stats.difference(evidence["lost"], "lost")} if "lost" in evidence else {})


def _nobody(evidence: Mapping[str, Tensor]) -> Check:
    flags = evidence[f"claimed_{OTHERS}"]
    hits = int(flags.sum())
    says = f"{hits} of {len(flags)} encoders that have nothing to do with the owner's are claimed at {LEVEL:.1%}."
    return Check(NOBODY, by_chance(hits, len(flags), LEVEL) > PLAUSIBLE, says, float(hits))
