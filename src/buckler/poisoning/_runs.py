"""What is done for each kind of method: train, let it work, measure. See `evaluate.evaluate`, which calls these.

Each takes the blank trial, the method and what is known of it, the subject, the setting and the meter, and returns the
trial with evidence, estimates and checks.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor, nn

from buckler import stats
from buckler.data import Poisoned, Rows, as_tensors
from buckler.kinds import Anomaly, Cultivated, Implanted, Suspicion
from buckler.method import Described, Method, describe
from buckler.poisoning import _measure
from buckler.subject import Subject
from buckler.target import Meter
from buckler.threat import Share
from buckler.train import cross_entropy, fit, started
from buckler.trial import Check, Trial

WORKS, COLLAPSED = 0.5, 0.1
"""An attack below this success leaves nothing to defend; a defence that costs more accuracy than this does harm."""
PREY = 8


@dataclass(frozen=True)
class Setting:
    """What one evaluation was asked for, and the rows that it uses."""

    share: Share | None
    attack: Method | None
    epochs: float
    seed: int
    test: Rows
    train: Rows | None
    places: Tensor
    """Where the training rows stand in the subject's data."""
    clean: Rows
    device: torch.device
    tick: Callable[[float, int], None] | None


# ------------------------------------------------------------------------------------------------ attacks


def _poisoned(
    blank: Trial, method: Method, described: Described, subject: Subject, setting: Setting, meter: Meter
) -> Trial:
    """Train on touched data, and on the same data untouched."""
    touched = _touched(method, described, subject, setting, setting.share)
    sick = _trained(subject, touched.seen, setting, meter, 0.0, 0.5)
    healthy = _trained(subject, _clean_rows(setting), setting, meter, 0.5, 1.0)
    evidence = _measure.outcome(sick, setting.test, touched)
    control = _measure.outcome(healthy, setting.test, touched)
    evidence |= {f"control_{name}": value for name, value in control.items()}
    evidence["accuracy_lost"] = evidence["control_correct"].to(torch.int8) - evidence["correct"].to(torch.int8)
    found = {**_measure.estimates(evidence), **_measure.estimates(evidence, "control_")}
    found["accuracy_lost"] = stats.difference(evidence["accuracy_lost"], "accuracy_lost")
    evidence |= {"touched": touched.rows, **_measure.pictures(setting.test, touched, sick)}
    checks = (_says_class_rate(touched),)
    if "success" in evidence:
        checks += (_not_by_chance(evidence),)
    return replace(blank, status="ok", estimates=found, evidence=evidence, checks=checks)


def _implanted(
    blank: Trial, method: Method, described: Described, subject: Subject, setting: Setting, meter: Meter
) -> Trial:
    """The adversary trains: measured as its model is."""
    model = _trained(subject, _clean_rows(setting), setting, meter, 0.0, 0.5)
    made: Implanted = method(model, _clean_rows(setting), **_seeded(described, setting))
    meter.watch(made.model)
    y = setting.test[1]
    touched = Poisoned(setting.test[0], y, torch.zeros_like(y, dtype=torch.bool), y, made.trigger, made.wanted)
    evidence = _measure.outcome(made.model, setting.test, touched)
    evidence |= {f"control_{name}": value for name, value in _measure.outcome(model, setting.test, touched).items()}
    found = {**_measure.estimates(evidence), **_measure.estimates(evidence, "control_")}
    evidence |= _measure.pictures(setting.test, touched, made.model)
    return replace(blank, status="ok", estimates=found, evidence=evidence, checks=(_not_by_chance(evidence),))


# ------------------------------------------------------------------------------------------------ defences


def _sifted(
    blank: Trial, method: Method, described: Described, subject: Subject, setting: Setting, meter: Meter
) -> Trial:
    """Rows scored; where an attack was asked for, against which rows it touched."""
    touched = _attacked(subject, setting)
    seen = touched.seen if touched is not None else _clean_rows(setting)
    if described.holds == "data":
        suspicion: Suspicion = method(seen, **_seeded(described, setting, subject))
    else:
        model = _trained(subject, seen, setting, meter, 0.0, 0.8)
        suspicion = method(model, seen, **_seeded(described, setting, subject))
    _sound(suspicion, len(seen[1]), described.path)
    evidence, found = _measure.isolation(suspicion, touched)
    evidence |= _suspects(seen, suspicion, setting)
    return replace(blank, status="ok", estimates=found, evidence=evidence)


def _inspected(
    blank: Trial, method: Method, described: Described, subject: Subject, setting: Setting, meter: Meter
) -> Trial:
    """Classes of the subject's own model scored; or, with an attack, of a model that was trained on touched data."""
    touched = _attacked(subject, setting)
    if touched is None:
        if not isinstance(subject.model, nn.Module):
            raise TypeError("expected a model, got an oracle")
        model = subject.model
    else:
        model = _trained(subject, touched.seen, setting, meter, 0.0, 0.8)
    anomaly: Anomaly = method(model, setting.clean, **_seeded(described, setting, subject))
    evidence: dict[str, Tensor] = {"anomaly": anomaly.score, "flagged": anomaly.flagged}
    found = {
        "flagged": stats.share(anomaly.flagged, "flagged"),
        "typical_anomaly": stats.median(anomaly.score, "anomaly"),
    }
    if anomaly.mask is not None and anomaly.pattern is not None:
        evidence |= {"mask": anomaly.mask, "pattern": anomaly.pattern}
    if touched is not None:
        evidence |= _measure.outcome(model, setting.test, touched)
        wanted = torch.zeros_like(anomaly.flagged)
        wanted[touched.y[touched.poison].unique()] = True
        evidence |= {"hit": anomaly.flagged[wanted], "false_alarm": anomaly.flagged[~wanted]}
        found |= _measure.estimates(evidence)
        found["found"] = stats.share(evidence["hit"], "hit")
        found["false_alarms"] = stats.share(evidence["false_alarm"], "false_alarm")
    return replace(blank, status="ok", estimates=found, evidence=evidence)


def _repaired(
    blank: Trial, method: Method, described: Described, subject: Subject, setting: Setting, meter: Meter
) -> Trial:
    """A backdoored model repaired with clean rows; without an attack, what the repair costs the subject's own model."""
    touched = _attacked(subject, setting)
    if touched is not None:
        sick = _trained(subject, touched.seen, setting, meter, 0.0, 0.5)
    elif isinstance(subject.model, nn.Module):
        sick = subject.model
    else:
        raise TypeError("expected a model, got an oracle")
    before = _measure.outcome(sick, setting.test, touched)  # now: a repair may change what it is given
    mended: nn.Module = method(sick, setting.clean, **_seeded(described, setting, subject))
    meter.watch(mended)
    return _compared(blank, before, mended, setting, touched)


def _cultivated(
    blank: Trial, method: Method, described: Described, subject: Subject, setting: Setting, meter: Meter
) -> Trial:
    """A model trained with care, beside one trained without; from touched data, or from the data as it is."""
    touched = _attacked(subject, setting)
    seen = touched.seen if touched is not None else _clean_rows(setting)
    sick = _trained(subject, seen, setting, meter, 0.0, 0.3)
    grown: Cultivated = method(seen, **_seeded(described, setting, subject))
    meter.watch(grown.model)
    trial = _compared(blank, _measure.outcome(sick, setting.test, touched), grown.model, setting, touched)
    evidence, found = dict(trial.evidence), dict(trial.estimates)
    if grown.suspicion is not None:
        _sound(grown.suspicion, len(seen[1]), described.path)
        more, numbers = _measure.isolation(grown.suspicion, touched)
        evidence |= {**more, **_suspects(seen, grown.suspicion, setting)}
        found |= numbers
    # the first dimension of evidence is the row
    evidence |= {f"dynamics_{name}": record.T.contiguous() for name, record in grown.dynamics.items()}
    return replace(trial, evidence=evidence, estimates=found)


def _compared(
    blank: Trial, before: dict[str, Tensor], mended: nn.Module, setting: Setting, touched: Poisoned | None
) -> Trial:
    """A defended model beside the undefended one, on the same test rows."""
    evidence = _measure.outcome(mended, setting.test, touched)
    evidence |= {f"undefended_{name}": tensor for name, tensor in before.items()}
    more, found = _measure.changes(evidence)
    evidence |= more
    found = {**_measure.estimates(evidence), **_measure.estimates(evidence, "undefended_"), **found}
    checks: tuple[Check, ...] = (_harmless(evidence),)
    status, reason = "ok", ""
    if touched is not None:
        checks += (_says_class_rate(touched),)
    if "undefended_success" in evidence:
        works = _works(evidence)
        checks += (works,)
        if not works.passed:
            status, reason = "inconclusive", works.says
    return replace(blank, status=status, reason=reason, estimates=found, evidence=evidence, checks=checks)


# ------------------------------------------------------------------------------------------------ doubts


def _works(evidence: dict[str, Tensor]) -> Check:
    success = stats.share(evidence["undefended_success"], "undefended_success")
    says = f"Undefended, {success.value:.1%} of triggered test rows are answered as the adversary wants."
    more = "" if success.value >= WORKS else " The attack does not work here, so that nothing is proven of a defence."
    return Check("the attack works", success.value >= WORKS, says + more, success.value)


def _harmless(evidence: dict[str, Tensor]) -> Check:
    lost = stats.difference(evidence["accuracy_change"], "accuracy_change") if "accuracy_change" in evidence else None
    value = 0.0 if lost is None else -lost.value
    says = f"The defence costs {100 * value:.1f} points of accuracy."
    more = "" if value <= COLLAPSED else " That is harm, whatever became of the backdoor."
    return Check("the defence is harmless", value <= COLLAPSED, says + more, value)


def _not_by_chance(evidence: dict[str, Tensor]) -> Check:
    """Whether a clean model answers the trigger as the adversary wants anyway: then success is no backdoor's."""
    success = stats.share(evidence["control_success"], "control_success")
    good = success.value <= 0.3
    says = f"Without poison {success.value:.1%} of triggered test rows are answered as the adversary wants."
    more = "" if good else " The trigger itself fools a clean model: this is evasion more than a backdoor."
    return Check("a clean model ignores the trigger", good, says + more, success.value)


def _says_class_rate(touched: Poisoned) -> Check:
    rate, many = touched.class_rate, int(touched.rows.sum())
    says = f"{many} of {len(touched.y)} rows were touched, {rate:.1%} of those with the label that holds most of them."
    if not touched.survives:
        says += " The trigger does not outlive flips and crops."
    return Check("share of the class", True, says, rate)


def _sound(suspicion: Suspicion, many: int, path: str) -> None:
    for name, tensor in (("score", suspicion.score), ("flagged", suspicion.flagged)):
        if tensor.shape != (many,):
            raise ValueError(f"{path}: expected {name} ({many},), got {tuple(tensor.shape)}")
    if not bool(suspicion.score.isfinite().all()):
        raise ValueError(f"{path}: expected finite scores, got {int((~suspicion.score.isfinite()).sum())} that are not")


# ------------------------------------------------------------------------------------------------ rows and models


def _suspects(seen: Rows, suspicion: Suspicion, setting: Setting) -> dict[str, Tensor]:
    """Every row's label and place in the training data, and the most suspicious rows as pictures."""
    order = suspicion.score.argsort(descending=True)
    order = torch.cat([order[suspicion.flagged[order]], order[~suspicion.flagged[order]]])[: _measure.SHOWN]
    x, y = as_tensors(seen, order)
    shown = {"suspect": x, "suspect_label": y, "suspect_row": setting.places[order]}
    return {"row": setting.places, "label": seen[1], **shown}


def _touched(attack: Method, described: Described, subject: Subject, setting: Setting, share: Share | None) -> Poisoned:
    more: dict[str, Any] = {"share": share, **_seeded(described, setting, subject)}
    if "prey" in described.knobs and described.params.get("prey") is None:
        more["prey"] = _prey(setting, int(str(described.params.get("target", 0))))
    return attack(_clean_rows(setting), **more)


def _attacked(subject: Subject, setting: Setting) -> Poisoned | None:
    """The training data after the attack that a defence is judged with; None where it is taken as it is."""
    if setting.attack is None:
        return None
    return _touched(setting.attack, describe(setting.attack), subject, setting, setting.share)


def _prey(setting: Setting, target: int) -> Rows:
    """Test rows of other classes, and the label that the adversary wants for them."""
    x, y = setting.test
    able = (y != target).nonzero().squeeze(1)[:PREY]
    return x[able], torch.full_like(y[able], target)


def _seeded(described: Described, setting: Setting, subject: Subject | None = None) -> dict[str, Any]:
    """The seed, the network and clean rows, for methods that ask for them."""
    more: dict[str, Any] = {}
    if "seed" in described.knobs and not described.params.get("seed"):
        more["seed"] = setting.seed
    if "net" in described.knobs and described.params.get("net") is None and subject is not None:
        net = subject.net
        if net is not None:
            more["net"] = lambda: net().to(setting.device)
    if "clean" in described.knobs and described.params.get("clean") is None:
        more["clean"] = setting.clean
    return more


def _trained(
    subject: Subject, data: Rows, setting: Setting, meter: Meter, begin: float, end: float
) -> nn.Module:  # fmt: skip
    """What the subject's own training makes of `data`: its recipe, or its network in the one loop."""
    if subject.recipe is not None:
        made = cast(object, subject.recipe(data))
        if not isinstance(made, nn.Module):
            raise ValueError(f"recipe: expected a function that returns a trained nn.Module, got {type(made).__name__}")
        model = made.to(setting.device).eval()
    elif subject.net is not None:
        model = started(subject.net, setting.seed).to(setting.device)
        meter.watch(model)
        fit(model, data, loss=cross_entropy, epochs=setting.epochs, seed=setting.seed)
    else:
        raise TypeError("expected a recipe or a net")
    meter.watch(model)
    if setting.tick is not None:
        setting.tick(end if end > begin else begin, meter.forwards)
    return model


def _clean_rows(setting: Setting) -> Rows:
    if setting.train is None:
        raise TypeError("expected training data")
    return setting.train


RUNS = {
    "poison": _poisoned,
    "implant": _implanted,
    "sift": _sifted,
    "inspect": _inspected,
    "repair": _repaired,
    "cultivate": _cultivated,
}
