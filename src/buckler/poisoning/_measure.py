"""What a model that was trained on touched data does with test rows, with the trigger and without.

Only the evaluator sees this: defences are given training rows and, where the method asks for them, clean ones.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from buckler import stats
from buckler.data import Poisoned, Rows, floats, held_as
from buckler.kinds import Suspicion
from buckler.poisoning._look import logits
from buckler.stats import Estimate

SHOWN = 6
"""How many rows are kept as pictures."""


def outcome(model: nn.Module, test: Rows, poisoned: Poisoned | None) -> dict[str, Tensor]:
    """Evidence of one model: `correct` `(N,)` on clean test rows; `success` and `recovered` `(M,)` on attacked ones.

    Attacked rows are those whose true label is not what the adversary wants; `success` is the wanted label with the
    trigger, `recovered` the true one. Prey have no `recovered`; an attack on accuracy alone has neither. A `ValueError`
    where the adversary wants no other label of any row.
    """
    x, y = test
    found = {"correct": logits(model, test).argmax(1) == y}
    if poisoned is None:
        return found
    if poisoned.trigger is not None and poisoned.wanted is not None:
        attacked = attacked_rows(test, poisoned)
        if not bool(attacked.any()):
            raise ValueError("expected test rows of another class than the target, got none: there is none to attack")
        answers = logits(model, (triggered(x[attacked], poisoned), y[attacked])).argmax(1)
        found["success"] = answers == poisoned.wanted(y[attacked])
        found["recovered"] = answers == y[attacked]
    elif poisoned.prey is not None:
        found["success"] = logits(model, poisoned.prey).argmax(1) == poisoned.prey[1]
    return found


def attacked_rows(test: Rows, poisoned: Poisoned) -> Tensor:
    """Which test rows can be attacked at all: those whose true label is not wanted already, `(N,)`."""
    y = test[1]
    return poisoned.wanted(y) != y if poisoned.wanted is not None else torch.zeros_like(y, dtype=torch.bool)


def triggered(x: Tensor, poisoned: Poisoned) -> Tensor:
    """Test inputs with the trigger, as a file would hold them: rounded to eight bits where the training data is."""
    if poisoned.trigger is None:
        return x
    moved = torch.cat([poisoned.trigger(part).clamp(0, 1) for part in x.split(1024)]) if len(x) else x
    return floats(held_as(poisoned.x, moved))


def estimates(evidence: dict[str, Tensor], prefix: str = "") -> dict[str, Estimate]:
    """Accuracy, attack success and recovered accuracy out of `outcome`'s evidence, each with its exact interval."""
    names = {"correct": "accuracy", "success": "attack_success", "recovered": "recovered_accuracy"}
    return {
        f"{prefix}{name}": stats.share(evidence[f"{prefix}{key}"], f"{prefix}{key}")
        for key, name in names.items()
        if f"{prefix}{key}" in evidence
    }


def changes(evidence: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Estimate]]:
    """What a defence changed, row by row, against the undefended model: evidence and estimates.

    `effectiveness` is the rating below; its evidence `effect` `(R, 2)` is where attack success and where accuracy fell,
    with NaN below the shorter of the two.
    """
    more: dict[str, Tensor] = {}
    found: dict[str, Estimate] = {}
    for key, name in (("correct", "accuracy_change"), ("success", "attack_success_change")):
        if key in evidence:
            more[name] = evidence[key].to(torch.int8) - evidence[f"undefended_{key}"].to(torch.int8)
            found[name] = stats.difference(more[name], name)
    if "success" in evidence:
        fell = [-more[name].float() for name in ("attack_success_change", "accuracy_change")]
        more["effect"] = nn.utils.rnn.pad_sequence(fell, batch_first=False, padding_value=torch.nan)
        found["effectiveness"] = stats.rating(more["effect"], "effect")
    return more, found


def effectiveness(before: dict[str, float], after: dict[str, float]) -> float:
    """The defence effectiveness rating of one pair of `accuracy` and `attack_success`: 0.5 is useless, 1 is perfect.

    (max(0, fall of attack success) - max(0, fall of accuracy) + 1) / 2 (Zhu et al., "Enhancing fine-tuning based
    backdoor defense with sharpness-aware minimization", ICCV 2023, https://arxiv.org/abs/2304.11823).
    """
    won = max(0.0, before["attack_success"] - after["attack_success"])
    lost = max(0.0, before["accuracy"] - after["accuracy"])
    return (won - lost + 1) / 2


def isolation(suspicion: Suspicion, poisoned: Poisoned | None) -> tuple[dict[str, Tensor], dict[str, Estimate]]:
    """How well poisoned rows were told from clean ones; without ground truth, how many rows are flagged.

    `separation` is the area under the ROC curve: how probably a poisoned row is more suspicious than a clean one.
    """
    evidence = {"suspicion": suspicion.score.double().float(), "flagged": suspicion.flagged}
    found = {"flagged": stats.share(suspicion.flagged, "flagged")}
    if poisoned is None:
        return evidence, found
    bad, clean = poisoned.poison, ~poisoned.rows  # covers are neither
    evidence["poisoned"] = bad
    evidence["flagged_poison"] = suspicion.flagged[bad]
    evidence["flagged_clean"] = suspicion.flagged[clean]
    evidence["right_flags"] = bad[suspicion.flagged & (bad | clean)]
    evidence["ranked"] = torch.stack([evidence["suspicion"], bad.float() - (~bad & ~clean).float()], 1)
    found["recall"] = stats.share(evidence["flagged_poison"], "flagged_poison")
    found["false_alarms"] = stats.share(evidence["flagged_clean"], "flagged_clean")
    found["precision"] = stats.share(evidence["right_flags"], "right_flags")
    found["separation"] = stats.area(evidence["ranked"], "ranked")
    return evidence, found


def pictures(test: Rows, poisoned: Poisoned, model: nn.Module) -> dict[str, Tensor]:
    """A few attacked test rows as pictures: clean, triggered, their labels, and what the model answers."""
    attacked = attacked_rows(test, poisoned)
    if poisoned.trigger is None or not bool(attacked.any()):
        return {}
    x, y = test[0][attacked][:SHOWN], test[1][attacked][:SHOWN]
    moved = triggered(x, poisoned)
    answers = logits(model, (moved, y)).argmax(1)
    return {"example_clean": x, "example_moved": moved, "example_label": y, "example_answer": answers}
