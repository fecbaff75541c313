"""What a trial of the area is called, what a defence did to the attack that it was tried against, and to which one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

from buckler.judging import changed, said
from buckler.trial import Trial


def attack_of(trial: Trial) -> tuple[str, dict[str, object]]:
    """The attack that a defence was tried against: its path, and the knobs that it was configured with."""
    asked = trial.params["attack"]
    if not isinstance(asked, dict):
        return str(asked), {}
    knobs = dict(cast("dict[str, object]", asked))
    return str(knobs.pop("method")), _shareless(knobs)


def attacked(trial: Trial) -> str:
    """The attack that a defence was tried against: `poisoning/badnets (size 5) at 5%`."""
    return f"{_with(*attack_of(trial))} at {trial.params['share']}"


def method_of(trial: Trial) -> str:
    """The method of a trial with the knobs that are not at their defaults: `poisoning/badnets (size 5)`."""
    return _with(trial.method, _shareless(changed(trial)))


def named(trial: Trial) -> str:
    """A trial as a reader is told of it: `poisoning/badnets at 5%`, `poisoning/dlp against poisoning/badnets at 5%`."""
    name = method_of(trial)
    if "attack" in trial.params:
        return f"{name} against {attacked(trial)}"
    return f"{name} at {trial.params['share']}" if "share" in trial.params else name


def short(trial: Trial) -> str:
    return named(trial).replace("poisoning/", "")


def _with(path: str, knobs: Mapping[str, object]) -> str:
    own = ", ".join(f"{name} {said(value)}" for name, value in knobs.items())
    return f"{path} ({own})" if own else path


def _shareless(knobs: Mapping[str, object]) -> dict[str, object]:
    """Knobs without the share, which a trial records beside them."""
    return {name: value for name, value in knobs.items() if name != "share"}


def answers(defence: Trial, attack: Trial) -> bool:
    """Whether a defence was tried against the attack of another trial: the same method, share and knobs."""
    path, knobs = attack_of(defence)
    own = _shareless(changed(attack))
    same = path == attack.method and defence.params.get("share") == attack.params.get("share")
    return same and own | knobs == knobs and attack.params | knobs == attack.params


def left(trial: Trial) -> float:
    """What a defence leaves of an attack, and what it costs: lower is better."""
    success = trial.estimates.get("attack_success")
    return (1.0 if success is None else success.value) - trial.estimates["accuracy"].value + harms(trial)


def harms(trial: Trial) -> bool:
    return any(check.name == "the defence is harmless" and not check.passed for check in trial.checks)


def did(defence: Trial) -> str:
    """What a repair or a cultivator did to an attack and to accuracy, in a sentence."""
    e, name = defence.estimates, method_of(defence)
    points = f"changed accuracy by {100 * e['accuracy_change'].value:+.1f} points."
    if "attack_success" not in e:
        return f"Against {attacked(defence)}, {name} {points}"
    before, after = e["undefended_attack_success"].value, e["attack_success"].value
    return f"Against {attacked(defence)}, {name} brought attack success from {before:.1%} to {after:.1%} and {points}"


def detected(detector: Trial) -> str:
    """What a sifter or an inspector flagged, in a sentence."""
    e = detector.estimates
    words = {"recall": "poisoned rows", "found": "target classes", "false_alarms": "others", "flagged": "all"}
    told = [f"{e[name].value:.1%} of the {what}" for name, what in words.items() if name in e and e[name].n]
    return f"Against {attacked(detector)}, {method_of(detector)} flagged {' and '.join(told[:2])}."
