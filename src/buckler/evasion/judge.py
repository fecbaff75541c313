"""From the area's trials to findings: the worst case per row over all attacks, its severity, and the pictures.

An adversary who knows the weights may also ask questions and borrow other models, so the white-box figure is the worst
case over every trial in the same norm. A row counts as robust at a radius if no trial found a smaller change that
fools the model: an upper bound on robust accuracy, at every radius at once.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from buckler import stats
from buckler.evasion._case import (
    ASKING,
    TRANSFER,
    WHITE,
    Case,
    Family,
    ahead_of_weights,
    asked_at,
    believed_rows,
    family_of,
    norm_of,
    radius_of,
    worst,
)
from buckler.findings import Figure, Finding, NotMeasured, Rule, Severity, Verdicts, because, severity
from buckler.judging import once, resting
from buckler.report import figures, tiles
from buckler.stats import Estimate
from buckler.trial import Trial

ASKED = ("ball", "rows", "through")
"""What `evaluate` may be asked that a command says, as flags."""


def judge(trials: Sequence[Trial], limits: Mapping[str, float], table: Mapping[str, Rule], command: str) -> Verdicts:
    """Findings, what could not be measured, and what contradicts itself; see `findings.Verdicts`.

    `limits` are the reference radii per norm, `table` the severity rules, and `command` the beginning of a command that
    repeats a measurement, with `{method}` for its path.
    """
    findings: list[Finding] = []
    struck = [t for t in trials if t.kind == "evade" and t.status in ("ok", "inconclusive")]
    attacks = [t for t in struck if t.params.get("goal") is None and norm_of(t) in limits]
    defences = [t for t in trials if t.kind in ("loss", "guard") and t.status == "ok"]
    proofs = [t for t in trials if t.kind == "certify" and t.status == "ok"]
    norms = [norm for norm in ("linf", "l2", "l1", "l0") if norm in limits]
    for norm in norms:
        mine = [t for t in attacks if norm_of(t) == norm]
        for family in (WHITE, ASKING, TRANSFER):
            chosen = mine if family is WHITE else [t for t in mine if family_of(t) is family]
            if family is WHITE and not any(family_of(t) is WHITE for t in mine):
                continue
            if chosen:
                case = worst(chosen, norm, limits[norm])
                findings.append(_vulnerable(case, family, table, command, proofs, defences if family is WHITE else []))
    findings += [_proven(proof, table, command) for proof in proofs]
    probes = [t for t in trials if t.kind == "probe" and t.status == "ok"]
    if probes:
        findings.append(_mechanism(probes, command))
    missing = [
        NotMeasured(
            f"{t.method} at {t.params.get('ball', '')}", t.reason, family_of(t)[1] if t.kind == "evade" else None
        )
        for t in trials
        if t.status in ("skipped", "failed") or (t.status == "inconclusive" and t.kind in ("loss", "guard"))
    ]
    missing += [NotMeasured(f"{t.method} at {t.params['ball']}", _UNUSED) for t in struck if t not in attacks]
    return Verdicts(tuple(findings), tuple(missing), tuple(_contradictions(trials, struck, proofs)))


_UNUSED = "it was run, but no finding rests on it: it aimed at one label, or its norm has no reference radius"


def _vulnerable(
    case: Case,
    family: Family,
    table: Mapping[str, Rule],
    command: str,
    proofs: Sequence[Trial],
    defences: Sequence[Trial],
) -> Finding:
    name, cell, rule, who = family
    limit = f"{case.norm}:{case.radius:g}"
    vouched, doubt = believed_rows(case, family)
    case = case.first(vouched) if vouched else case
    robust = case.at(case.radius)
    clean = stats.share(case.correct, "correct")
    level = severity(f"evasion.{rule}", robust, table)
    claim = (
        f"{who} can bring accuracy from {clean.value:.1%} down to at most {robust.value:.1%} "
        f"by {_WORDS[case.norm].format(radius=case.radius)}."
    )
    state = "found" if level > Severity.info else "clear"
    checks = once(t for t in case.trials if family_of(t) is family)
    if family is WHITE and (ahead := ahead_of_weights(case)) is not None:
        checks += (ahead,)
        doubt = doubt or ("" if ahead.passed else ahead.says)
    fell = int((case.correct & (case.distance <= case.reach(case.radius))).sum())
    point = replace(robust, low=robust.value, high=robust.value)
    if doubt:
        claim += f" The true figure may be lower: {doubt}"
        state = "found" if level > Severity.low and fell else "not measured"
    elif not fell and level > severity(f"evasion.{rule}", point, table):
        claim += f" No row fell, and {robust.n} rows are too few to rule out that others would."
        state = "not measured"
    own = [t for t in case.trials if family_of(t) is family]
    strongest = min(
        (t for t in own if asked_at(t, case.radius) and "robust_accuracy" in t.estimates),
        key=lambda t: t.estimates["robust_accuracy"].value,
        default=own[0],
    )
    tried = [d for d in defences if norm_of(d) == case.norm and asked_at(d, case.radius)]
    found = Finding(
        id=f"evasion/{name}/{case.norm}",
        title=f"{_TITLES[state]} within {limit} ({name.replace('-', ' ')})",
        state=state,
        severity=level if state == "found" else Severity.info,
        because=because(f"evasion.{rule}", robust, table),
        claim=claim,
        cell=cell,
        estimates={"robust accuracy": robust, "clean accuracy": clean},
        figures=tuple(_pictures(case, strongest, proofs, tried, family)),
        remedy=_remedy(family, tried),
        remedy_methods=tuple(t.method for t in tried) or _answers(family),
        remedied={key: value for t in tried for key, value in _measured(t).items()},
    )
    found = resting(found, case.trials, strongest, command, ASKED)
    return replace(found, threat=replace(strongest.threat, within=limit), checks=checks)


_WORDS = {
    "linf": "changing every value of an input by at most {radius:g} (values lie between 0 and 1)",
    "l2": "a change of an input whose Euclidean length is at most {radius:g} (values lie between 0 and 1)",
    "l1": "changes of an input that add up to at most {radius:g} (values lie between 0 and 1)",
    "l0": "changing at most {radius:g} values of an input",
}
_TITLES = {
    "found": "The model is fooled by inputs changed",
    "clear": "The model holds against inputs changed",
    "not measured": "It could not be told whether the model holds against inputs changed",
}


def _pictures(
    case: Case, strongest: Trial, proofs: Sequence[Trial], defences: Sequence[Trial], family: Family
) -> Iterable[Figure]:
    reach = _reach(case)
    if reach > 0:
        radii = [reach * step / 40 for step in range(41)]
        certified, proven_of = None, ""
        for proof in proofs:
            if proof.params["norm"] == case.norm and family is WHITE and not (certified and proven_of == ""):
                held, proven = proof.evidence["certified_right"], proof.evidence["certified_radius"]
                certified = (radii, [stats.share(held & (proven >= r), "certified") for r in radii])
                proven_of = "" if proof.params["certifies"] == "the model itself" else str(proof.params["certifies"])
        curves = {"strongest attack, per row": (radii, [case.at(r) for r in radii])}
        yield figures.security_curve(
            curves, axis=f"radius, {case.norm}", certified=certified, proven_of=proven_of, mark=case.radius
        )
    if "example_clean" in strongest.evidence and strongest.evidence["example_clean"].ndim == 4:
        rows = strongest.evidence["example_row"]
        yield tiles.examples(
            strongest.evidence["example_clean"],
            strongest.evidence["example_moved"],
            strongest.evidence["label"][rows],
            strongest.evidence["prediction"][rows],
        )
    bars = {_named(t): t.estimates["robust_accuracy"] for t in case.trials if "robust_accuracy" in t.estimates}
    if len(bars) > 1:
        yield figures.bars({**bars, "worst case, per row": case.at(case.radius)}, name="attacks")
    effects = {key: value for t in defences for key, value in _measured(t).items()}
    if effects:
        yield figures.bars(effects, name="defences")


def _reach(case: Case) -> float:
    """How far a curve may be drawn: as far as something searched every radius on the way, 0 if nothing did."""
    if any(math.isinf(radius_of(t)) for t in case.trials):
        return 2 * case.radius
    grids = [radii for t in case.trials if isinstance(radii := t.params.get("radii"), list) and radii]
    return max((float(str(radii[-1])) for radii in grids), default=0.0)


def _named(trial: Trial) -> str:
    name = trial.method.rpartition("/")[2].replace("_", " ")
    return f"{name}, transfer" if "through" in trial.params else name


def _measured(trial: Trial) -> dict[str, Estimate]:
    name = trial.method.rpartition("/")[2]
    named = ("robust_accuracy", "control_robust_accuracy", "clean_accuracy", "control_clean_accuracy")
    return {f"{name}: {key.replace('_', ' ')}": trial.estimates[key] for key in named if key in trial.estimates}


def _remedy(family: Family, tried: Sequence[Trial]) -> str:
    gains = [t for t in tried if t.status == "ok" and t.estimates["robustness_gained"].low > 0]
    if gains:
        best = max(gains, key=lambda t: t.estimates["robustness_gained"].value)
        gained, cost = best.estimates["robustness_gained"], best.estimates["clean_accuracy_change"]
        return (
            f"{best.method} was tried and attacked adaptively: robust accuracy changed by {gained.value:+.1%} "
            f"[{gained.low:+.1%}, {gained.high:+.1%}] and clean accuracy by {cost.value:+.1%} against its control."
        )
    if tried:
        return (
            "The defences tried here gained nothing that their intervals can show; train against the strongest attack."
        )
    if family is WHITE:
        return "Train against the attack (adversarial training), and keep weights from those who need only answers."
    return "Train against the attack, limit and watch queries, and reveal labels where scores are not needed."


def _answers(family: Family) -> tuple[str, ...]:
    return ("evasion/trades", "evasion/madry") if family is WHITE else ("evasion/madry",)


def _proven(proof: Trial, table: Mapping[str, Rule], command: str) -> Finding:
    accuracy = proof.estimates.get("certified_accuracy", proof.estimates["certified_label_right"])
    level = severity("evasion.certified_accuracy", accuracy, table)
    norm = str(proof.params["norm"])
    name = proof.method.rpartition("/")[2]
    at_limit = "certified_accuracy" in proof.estimates
    what = f"for {proof.params['ball']}" if at_limit else f"for some radius in {norm}, not for {proof.params['ball']}"
    found = Finding(
        id=f"evasion/certificate/{name.replace(':', '.')}",
        title=f"What {name.replace('_', ' ')} proves in {norm}",
        state="found" if level > Severity.info else "clear",
        severity=level,
        because=because("evasion.certified_accuracy", accuracy, table),
        claim=f"{accuracy.value:.1%} of rows are answered rightly with a proof {what}, by {proof.params['certifies']}.",
        cell=("weights", "integrity"),
        estimates={"certified accuracy": accuracy, "clean accuracy": proof.estimates["clean_accuracy"]},
        remedy="Train for the certificate: smoothing wants training with noise, interval bounds interval training.",
    )
    return resting(found, [proof], proof, command, ASKED)


def _mechanism(probes: Sequence[Trial], command: str) -> Finding:
    readings = {name: (t, e) for t in probes for name, e in t.estimates.items()}
    told = "; ".join(f"{name.replace('_', ' ')}: median {e.value:.3g}" for name, (_, e) in readings.items())
    drawn = {name: t.evidence[name] for name, (t, _) in readings.items()}
    found = Finding(
        id="evasion/mechanism",
        title="Why the model can be fooled",
        state="found",
        claim=f"Measured at the test rows: {told}.",
        cell=("weights", "integrity"),
        estimates={name.replace("_", " "): e for name, (_, e) in readings.items()},
        figures=(figures.histogram(drawn),),
        remedy="A small margin beside a steep, straight loss asks for adversarial training; a bent one for doubt in "
        "one-step attacks.",
    )
    tags = tuple(dict.fromkeys(tag for t in probes for tag in t.threat.tags))
    return replace(resting(found, probes, probes[0], command, ASKED), tags=tags)


def _contradictions(trials: Sequence[Trial], attacks: Sequence[Trial], proofs: Sequence[Trial]) -> Iterable[str]:
    """The sandwich: nothing may be fooled inside a certificate."""
    for trial in trials:
        if trial.kind == "certify" and trial.status == "failed" and trial.evidence:
            yield f"{trial.method}: {trial.reason}"
    for proof in proofs:
        if proof.params["certifies"] != "the model itself":
            continue
        for attack in attacks:
            if norm_of(attack) != proof.params["norm"]:
                continue
            n = min(len(attack.evidence["distance"]), len(proof.evidence["certified_radius"]))
            held = proof.evidence["certified_right"][:n]
            inside = attack.evidence["distance"][:n] < proof.evidence["certified_radius"][:n] * (1 - 1e-4)
            many = int((held & inside).sum())
            if many:
                yield f"{attack.method} fooled {many} rows inside the radius that {proof.method} certified"
