"""An inference of membership, played on an encoder: what its scores are worth, on a control, and after early stopping.

Members are rows that the encoder learnt from; the others are drawn as they were where the encoder is pre-trained here,
and are test rows where it is the subject's own. The adversary's encoders learn from rows apart from both. The control
is one of those: it saw neither side, so what it tells apart is another difference between the two. Early stopping is
the paper's defence: the same attack, its encoders stopped as early, on encoders that stopped after shares of the steps.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn

from buckler import nets, stats
from buckler.catalog import find
from buckler.data import Rows, drawn, floats, raw
from buckler.encoders._scene import LEAST, pretrained, refusal, tasks
from buckler.encoders._setting import Setting
from buckler.encoders._shadowed import Known, Shadows
from buckler.encoders._stolen import less, outfitted, worth
from buckler.evaluation import skipped
from buckler.method import describe, held, left_open
from buckler.stats import Estimate
from buckler.target import Oracle, frozen
from buckler.threat import Threat
from buckler.trial import Check, Cost, Trial

SHADOWS = 3
STOPS = (0.1, 0.3)
"""After which shares of the steps encoders are stopped, where they are pre-trained here."""
STRICT = 0.99
"""The level at which the control is doubted: seldom, where nothing is wrong."""
CONTROL = "an encoder that saw neither side tells nothing"


@dataclass(frozen=True)
class _Game:
    """Rows `(N, C, H, W)`, who of them is a `member` `(N,)`, and the rows that the adversary has."""

    x: Tensor
    member: Tensor
    known: Rows


def inferred(setting: Setting) -> Trial:
    """The encoder attacked, the control, and what early stopping leaves of it; see `evaluate.evaluate`."""
    described = setting.described
    asked = setting.asked("rows", "train_rows", "encoder_steps")
    within = f"{described.params.get('asked', 1)} queries per row, {SHADOWS} encoders pre-trained on other rows"
    blank = setting.blank(Threat("features", "nothing", within, "which rows were learnt from", described.tags), asked)
    if reason := refusal(setting, learnt=True):
        return skipped(blank, reason)
    seen, setting = outfitted(setting)
    learnt, own = cast(Rows, seen.learnt), seen.own
    others, known = (seen.test, seen.spare) if own else (seen.spare, seen.test)
    game = _Game(*_sides(learnt, others, setting), known)
    if reason := _too_few(game):
        return skipped(blank, reason)
    task = tasks(setting, seen)[:1]
    evidence = worth(seen.encoder, task, setting.seed)
    shadows = dict[Known, Shadows]()
    scores, queries = _scored(setting, seen.encoder, game, shadows)
    evidence |= _told("", scores, game)
    setting.told(0.7)
    made = next(iter(shadows.values()))
    fewer = {known: some.without(SHADOWS - 1) for known, some in shadows.items()}
    again, _ = _scored(setting, made.encoders[-1], game, fewer)
    evidence |= _told("control_", again, game)
    for index, stop in enumerate(() if own else STOPS):
        early = _early(setting, stop)
        stopped = stopped_early(setting, learnt, stop)
        name = f"stopped_{stop:g}_"
        evidence |= worth(stopped, task, setting.seed, name)
        evidence |= _told(name, _scored(early, stopped, game, {})[0], game)
        evidence[f"{name}change"] = less(evidence, f"{name}few_correct", "few_correct")
        setting.told(0.75 + 0.12 * (index + 1))
    found = _estimated(evidence)
    check = _control(evidence["control_ranked"])
    return replace(
        blank,
        status="ok" if check.passed else "inconclusive",
        reason="" if check.passed else check.says,
        checks=(check,),
        estimates=found,
        evidence=evidence,
        cost=Cost(queries=queries),
    )


def stopped_early(setting: Setting, data: Rows, share: float) -> nn.Module:
    """The encoder that is had of `data` after a `share` of the steps, its rate having fallen by then."""
    return pretrained(_early(setting, share), data)


def _early(setting: Setting, share: float) -> Setting:
    return replace(setting, encoder_steps=max(1, round(share * setting.encoder_steps)))


def _sides(learnt: Rows, others: Rows, setting: Setting) -> tuple[Tensor, Tensor]:
    """As many members as other rows, at most `rows` together, and who is which."""
    many = min(setting.rows // 2, len(learnt[1]), len(others[1]))
    inside, outside = (floats(raw(some, drawn(some, many, setting.seed))[0]) for some in (learnt, others))
    return torch.cat([inside, outside]), torch.arange(2 * many) < many


def _too_few(game: _Game) -> str:
    """Why there are too few rows to play with, or nothing."""
    least = (SHADOWS + 1) * LEAST
    if int(game.member.sum()) >= LEAST and len(game.known[1]) >= least:
        return ""
    return (
        f"expected {LEAST} rows on either side and {least} for the adversary or more, got "
        f"{int(game.member.sum())} and {len(game.known[1])}: ask for more rows"
    )


def _scored(
    setting: Setting, target: nn.Module | Oracle, game: _Game, kept: dict[Known, Shadows]
) -> tuple[Tensor, int]:
    """A score for every row and how many questions it took; shadows that are made are `kept`. A `ValueError` for scores
    that are none."""
    may = cast(Oracle, held("features", target))

    def shadows(known: Known) -> Shadows:
        if known not in kept:
            kept[known] = _shadows(setting, game.known, known)
        return kept[known]

    given: dict[str, Any] = {"shadows": shadows, "seed": setting.seed}
    began = time.perf_counter()
    with frozen(target) if isinstance(target, nn.Module) else nullcontext():
        filled = {name: given[name] for name in left_open(setting.method, *given)}
        scores = cast(Tensor, setting.method(may, game.x.to(setting.device), **filled)).detach().cpu()
    setting.meter.method_seconds += time.perf_counter() - began
    if scores.shape != (len(game.x),) or not bool(scores.isfinite().all()):
        raise ValueError(
            f"{setting.described.path}: expected {len(game.x)} finite scores, got {tuple(scores.shape)} with "
            f"{int((~scores.isfinite()).sum())} that are not"
        )
    return scores, may.asked


def _shadows(setting: Setting, data: Rows, known: Known) -> Shadows:
    """The adversary's encoders, on parts of its rows. Where it does not know the kind of rows it has its own turned by
    a quarter, light for dark; for the network it has a narrow one of two stages; and another algorithm."""
    if not known.rows:
        data = (255 if data[0].dtype == torch.uint8 else 1) - data[0].rot90(1, (2, 3)), data[1]
    if not known.net:
        channels, small = data[0].shape[1], min(data[0].shape[2:]) <= 16
        build = partial(nets.encoder, channels=channels, width=8, blocks=(1, 1), stride=1 if small else 2)
        setting = replace(setting, subject=replace(setting.subject, body=build))
    mine = describe(setting.pretraining).path
    other = find("encoders/moco" if mine == "encoders/simclr" else "encoders/simclr")
    order = torch.randperm(len(data[1]), generator=torch.Generator().manual_seed(setting.seed))
    parts = [(data[0][rows], data[1][rows]) for rows in order.tensor_split(SHADOWS + 1)]
    made = [
        pretrained(setting, part, seed=setting.seed + 1 + index, method=None if known.algorithm else other)
        for index, part in enumerate(parts[:SHADOWS])
    ]
    return Shadows(tuple(made), tuple(x.to(setting.device) for x, _ in parts[:SHADOWS]), parts[-1][0])


def _told(name: str, scores: Tensor, game: _Game) -> dict[str, Tensor]:
    member = game.member.to(scores)
    return {
        f"{name}ranked": torch.stack([scores, member], 1),
        f"{name}judged": torch.stack([(scores > 0).to(scores), member], 1),
    }


def _estimated(evidence: Mapping[str, Tensor]) -> dict[str, Estimate]:
    found = dict[str, Estimate]()
    for name in evidence:
        start = name.removesuffix("ranked")
        if start != name:
            found[f"{start}auc"] = stats.area(evidence[name], name)
            found[f"{start}found_at_one_percent"] = stats.found(evidence[name], name)
            found[f"{start}balanced_accuracy"] = stats.balanced(evidence[f"{start}judged"], f"{start}judged")
        elif name.endswith("correct"):
            found[name] = stats.share(evidence[name], name)
        elif name.endswith("change"):
            found[name] = stats.difference(evidence[name], name)
    return found


def _control(ranked: Tensor) -> Check:
    """Whether members stand out to an encoder that did not learn from them, `ranked` `(N, 2)`; they must not."""
    area = stats.area(ranked, "control_ranked", STRICT)
    good = area.low <= 0.5 <= area.high
    says = f"To an encoder that saw neither side the area under the curve is {area}."
    more = "" if good else " The two sides differ in something else than membership, so this does not measure it."
    return Check(CONTROL, good, says + more, area.value)
