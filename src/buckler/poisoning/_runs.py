"""What is done for each kind of method: train, let it work, measure. See `evaluate.evaluate`, which calls these.

Each takes the blank trial, the setting, and the training data after an attack (None where it is taken as it is), and
returns the trial with evidence, estimates and checks.
"""

from __future__ import annotations

import copy
from dataclasses import replace

import torch
from torch import Tensor, nn

from buckler import stats
from buckler.data import Poisoned, Rows, as_tensors
from buckler.kinds import Anomaly, Cultivated, Implanted, Suspicion
from buckler.poisoning import _measure
from buckler.poisoning._doubts import harmless, not_by_chance, of_the_data, sound, works
from buckler.poisoning._setting import Setting, called, seen, trained
from buckler.stats import Estimate
from buckler.trial import Check, Trial

# ------------------------------------------------------------------------------------------------ attacks


def _poisoned(blank: Trial, setting: Setting, touched: Poisoned | None) -> Trial:
    """Train on touched data, and on the same data untouched."""
    if touched is None:
        raise TypeError("expected touched rows of an attack, got none")
    sick = trained(setting, seen(setting, touched), begin=0.1, end=0.55)
    healthy = trained(setting, seen(setting), begin=0.55, end=1.0, before=(sick,))
    evidence, found = _beside(healthy, sick, setting, touched)
    evidence["accuracy_lost"] = evidence["control_correct"].to(torch.int8) - evidence["correct"].to(torch.int8)
    found["accuracy_lost"] = stats.difference(evidence["accuracy_lost"], "accuracy_lost")
    evidence |= {"touched": touched.rows, "poisoned": touched.poison.clone()}
    checks = of_the_data(touched, setting.share)
    if "success" in evidence:
        checks += (not_by_chance(evidence),)
    return replace(blank, status="ok", estimates=found, evidence=evidence, checks=checks)


def _implanted(blank: Trial, setting: Setting, touched: Poisoned | None) -> Trial:
    """The adversary trains: measured as its model is."""
    model = trained(setting, seen(setting), begin=0.0, end=0.5)
    made: Implanted = called(setting, copy.deepcopy(model), seen(setting), done=0.5)
    setting.meter.watch(made.model)
    x, y = setting.test
    touched = Poisoned(x, y, torch.zeros_like(y, dtype=torch.bool), y, made.trigger, made.wanted)
    evidence, found = _beside(model, made.model, setting, touched)
    return replace(blank, status="ok", estimates=found, evidence=evidence, checks=(not_by_chance(evidence),))


def _beside(
    healthy: nn.Module, sick: nn.Module, setting: Setting, touched: Poisoned
) -> tuple[dict[str, Tensor], dict[str, Estimate]]:
    """A model that an adversary had a hand in, beside one without."""
    evidence = _measure.outcome(sick, setting.test, touched)
    control = _measure.outcome(healthy, setting.test, touched)
    evidence |= {f"control_{name}": value for name, value in control.items()}
    found = {**_measure.estimates(evidence), **_measure.estimates(evidence, "control_")}
    return {**evidence, **_measure.pictures(setting.test, touched, sick)}, found


# ------------------------------------------------------------------------------------------------ defences


def _sifted(blank: Trial, setting: Setting, touched: Poisoned | None) -> Trial:
    """Rows scored; where an attack was asked for, against which rows it touched."""
    data, learnt = seen(setting, touched), dict[str, Tensor]()
    if setting.described.holds == "data":
        suspicion: Suspicion = called(setting, data)
    else:
        model = trained(setting, seen(setting, touched), begin=0.0, end=0.8)
        if touched is not None:
            learnt = _measure.outcome(model, setting.test, touched)
        suspicion = called(setting, model, data, done=0.8)
    sound(suspicion, len(data[1]), setting.described.path)
    evidence, found = _measure.isolation(suspicion, touched)
    found |= _measure.estimates(learnt)
    evidence |= {**learnt, **_suspects(suspicion, setting, touched)}
    return _credited(replace(blank, estimates=found, evidence=evidence), setting, touched, learnt.get("success"))


def _inspected(blank: Trial, setting: Setting, touched: Poisoned | None) -> Trial:
    """Classes of the subject's own model scored; or, with an attack, of a model that was trained on touched data."""
    model = _given(setting, touched, end=0.8)
    learnt = {} if touched is None else _measure.outcome(model, setting.test, touched)
    anomaly: Anomaly = called(setting, model, setting.clean, done=0.8)
    evidence: dict[str, Tensor] = {**learnt, "anomaly": anomaly.score, "flagged": anomaly.flagged}
    found = {
        "flagged": stats.share(anomaly.flagged, "flagged"),
        "typical_anomaly": stats.median(anomaly.score, "anomaly"),
        **_measure.estimates(learnt),
    }
    if anomaly.mask is not None and anomaly.pattern is not None:
        evidence |= {"mask": anomaly.mask, "pattern": anomaly.pattern}
    if touched is not None:
        wanted = _aims(touched, len(anomaly.flagged)).to(anomaly.flagged.device)
        evidence |= {"hit": anomaly.flagged[wanted], "false_alarm": anomaly.flagged[~wanted]}
        found["found"] = stats.share(evidence["hit"], "hit")
        found["false_alarms"] = stats.share(evidence["false_alarm"], "false_alarm")
    return _credited(replace(blank, estimates=found, evidence=evidence), setting, touched, learnt.get("success"))


def _aims(touched: Poisoned, classes: int) -> Tensor:
    """The classes that the adversary wants inputs to be answered with, `(K,)`; an attack on accuracy wants none."""
    labels = torch.arange(classes)
    if touched.wanted is not None:
        return torch.isin(labels, touched.wanted(labels))
    return torch.isin(labels, labels[:0] if touched.prey is None else touched.prey[1].cpu())


def _repaired(blank: Trial, setting: Setting, touched: Poisoned | None) -> Trial:
    """A backdoored model repaired with clean rows; without an attack, what the repair costs the subject's own model."""
    sick = _given(setting, touched, end=0.5)
    before = _measure.outcome(sick, setting.test, touched)  # now: a repair may change what it is given
    mended: nn.Module = called(setting, sick, setting.clean, done=0.5)
    return _compared(blank, before, mended, setting, touched)


def _cultivated(blank: Trial, setting: Setting, touched: Poisoned | None) -> Trial:
    """A model trained with care, beside one trained without; from touched data, or from the data as it is."""
    data = seen(setting, touched)
    sick = trained(setting, seen(setting, touched), begin=0.0, end=0.3)
    before = _measure.outcome(sick, setting.test, touched)
    grown: Cultivated = called(setting, data, done=0.3)
    trial = _compared(blank, before, grown.model, setting, touched)
    evidence, found = dict(trial.evidence), dict(trial.estimates)
    if grown.suspicion is not None:
        sound(grown.suspicion, len(data[1]), setting.described.path)
        more, numbers = _measure.isolation(grown.suspicion, touched)
        evidence |= {**more, **_suspects(grown.suspicion, setting, touched)}
        found |= numbers
    # the first dimension of evidence is the row
    evidence |= {f"dynamics_{name}": record.T.contiguous() for name, record in grown.dynamics.items()}
    return replace(trial, evidence=evidence, estimates=found)


def _given(setting: Setting, touched: Poisoned | None, *, end: float) -> nn.Module:
    """The model that a defence is handed: one trained on touched data, else the subject's own."""
    if touched is not None:
        return trained(setting, seen(setting, touched), begin=0.0, end=end)
    if not isinstance(setting.subject.model, nn.Module):
        raise TypeError("expected a model, got an oracle")
    return setting.subject.model


def _compared(
    blank: Trial, before: dict[str, Tensor], mended: nn.Module, setting: Setting, touched: Poisoned | None
) -> Trial:
    """A defended model beside the undefended one, on the same test rows."""
    setting.meter.watch(mended)
    evidence = _measure.outcome(mended, setting.test, touched)
    evidence |= {f"undefended_{name}": tensor for name, tensor in before.items()}
    more, found = _measure.changes(evidence)
    evidence |= more
    found = {**_measure.estimates(evidence), **_measure.estimates(evidence, "undefended_"), **found}
    made = replace(blank, estimates=found, evidence=evidence, checks=(harmless(evidence),))
    return _credited(made, setting, touched, before.get("success"))


def _credited(trial: Trial, setting: Setting, touched: Poisoned | None, success: Tensor | None) -> Trial:
    """The trial of a defence with the doubts about its attack: one without `success` `(M,)` proves nothing."""
    checks: tuple[Check, ...] = () if touched is None else of_the_data(touched, setting.share)
    attack = () if success is None else (works(success),)
    reason = " ".join(check.says for check in attack if not check.passed)
    status = "inconclusive" if reason else "ok"
    return replace(trial, status=status, reason=reason, checks=(*trial.checks, *checks, *attack))


def _suspects(suspicion: Suspicion, setting: Setting, touched: Poisoned | None) -> dict[str, Tensor]:
    """Every row's label and place in the training data, and the most suspicious rows as pictures."""
    order = suspicion.score.argsort(descending=True)
    order = torch.cat([order[suspicion.flagged[order]], order[~suspicion.flagged[order]]])[: _measure.SHOWN]
    data: Rows = seen(setting, touched)
    x, y = as_tensors(data, order)
    shown = {"suspect": x, "suspect_label": y, "suspect_row": setting.places[order]}
    return {"row": setting.places, "label": data[1], **shown}


RUNS = {
    "poison": _poisoned,
    "implant": _implanted,
    "sift": _sifted,
    "inspect": _inspected,
    "repair": _repaired,
    "cultivate": _cultivated,
}
