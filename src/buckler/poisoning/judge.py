"""From the area's trials to findings: can the training be poisoned, is the data, is the model, and what helps.

Three questions are asked of a subject, and each has one finding. Its pipeline: the worst attack success over every
attack that was tried on it. Its data: the rows that sifters and cultivators flag as they are. Its model: the classes
that inspectors flag. Defences that were tried against a known attack answer the first.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress

from buckler.catalog import find
from buckler.findings import Figure, Finding, NotMeasured, Rule, Severity, Verdicts, because, severity
from buckler.method import describe
from buckler.report import figures, tiles
from buckler.stats import Estimate
from buckler.trial import Check, Cost, Trial

DEFENCES = ("cultivate", "repair")
OWN = ("share", "attack", "train_rows", "clean_rows", "training_epochs")
"""What `evaluate` may be asked beside a method's own knobs, as flags."""


def judge(trials: Sequence[Trial], limits: Mapping[str, float], table: Mapping[str, Rule], command: str) -> Verdicts:
    """Findings and what could not be measured; see `findings.Verdicts`.

    `limits` are not used here, `table` holds the severity rules, and `command` is the beginning of a command that
    repeats a measurement, with `{method}` for its path.
    """
    del limits
    good = [t for t in trials if t.status == "ok"]
    attacks = [t for t in good if t.kind in ("poison", "implant") and "attack_success" in t.estimates]
    spoilers = [t for t in good if t.kind == "poison" and "attack_success" not in t.estimates]
    tried = [t for t in good if t.kind in DEFENCES and "attack" in t.params]
    findings: list[Finding] = []
    if attacks:
        findings.append(_susceptible(attacks, tried, table, command))
    if spoilers:
        findings.append(_spoilt(spoilers, table, command))
    if sifted := [t for t in good if "suspicion" in t.evidence and "attack" not in t.params]:
        findings.append(_data(sifted, command))
    if inspected := [t for t in good if t.kind == "inspect" and "attack" not in t.params]:
        findings.append(_model(inspected, table, command))
    if tried:
        findings.append(_defences(tried, command))
    missing = [
        NotMeasured(_named(t), t.reason, ("training", "integrity"))
        for t in trials
        if t.status in ("skipped", "failed", "inconclusive")
    ]
    return Verdicts(tuple(findings), tuple(missing))


def _named(trial: Trial) -> str:
    against = f" against {trial.params['attack']}" if "attack" in trial.params else ""
    return f"{trial.method}{against} at {trial.params['share']}" if "share" in trial.params else trial.method + against


def _susceptible(
    attacks: Sequence[Trial], tried: Sequence[Trial], table: Mapping[str, Rule], command: str
) -> Finding:  # fmt: skip
    worst = max(attacks, key=lambda t: t.estimates["attack_success"].low)
    success, accuracy = worst.estimates["attack_success"], worst.estimates["accuracy"]
    control = worst.estimates["control_accuracy"]
    level = severity("poisoning.attack_success", success, table)
    share = worst.params.get("share", "all")
    claim = (
        f"With {share} of the training rows touched by {worst.method}, {success.value:.1%} of triggered inputs are "
        f"answered as the adversary wants, while accuracy stays at {accuracy.value:.1%} (clean: {control.value:.1%})."
    )
    best = min(tried, key=_left, default=None)
    names = {
        f"{t.method.rpartition('/')[2]} {t.params.get('share', '')}": t.estimates["attack_success"] for t in attacks
    }
    return Finding(
        id="poisoning/pipeline",
        title="What the training learns from poisoned data",
        state="found" if level > Severity.info else "clear",
        severity=level,
        because=because("poisoning.attack_success", success, table),
        claim=claim,
        cell=("training", "integrity"),
        estimates={
            "attack success": success,
            "accuracy": accuracy,
            "clean accuracy": control,
            "attack success without poison": worst.estimates["control_attack_success"],
        },
        threat=worst.threat,
        checks=_checks([worst, *attacks]),
        figures=(*_shown(worst), figures.bars(names, axis="triggered rows answered as wanted", name="attack-success")),
        remedy=_remedy(best),
        remedy_methods=("poisoning/dlp",) if best is None else (best.method,),
        remedied={} if best is None else _remedied(best),
        tags=worst.threat.tags,
        cost=_total(attacks),
        trials=tuple(t.fingerprint for t in attacks),
        reproduce=_reproduce(command, worst),
    )


def _spoilt(spoilers: Sequence[Trial], table: Mapping[str, Rule], command: str) -> Finding:
    worst = max(spoilers, key=lambda t: t.estimates["accuracy_lost"].value)
    lost = worst.estimates["accuracy_lost"]
    level = severity("poisoning.accuracy_lost", lost, table)
    return Finding(
        id="poisoning/availability",
        title="What poisoned data costs in accuracy",
        state="found" if level > Severity.info else "clear",
        severity=level,
        because=because("poisoning.accuracy_lost", lost, table),
        claim=f"With {worst.params.get('share', '')} of the training rows touched by {worst.method}, accuracy changes "
        f"by {-100 * lost.value:+.1f} points.",
        cell=("training", "availability"),
        estimates={"accuracy lost": lost, "accuracy": worst.estimates["accuracy"]},
        threat=worst.threat,
        checks=_checks(spoilers),
        remedy="Find wrong labels before training, and keep the source of every row.",
        remedy_methods=("poisoning/label_errors",),
        tags=worst.threat.tags,
        cost=_total(spoilers),
        trials=tuple(t.fingerprint for t in spoilers),
        reproduce=_reproduce(command, worst),
    )


def _data(sifted: Sequence[Trial], command: str) -> Finding:
    """The user's own rows, as they are: who is suspicious. There is no ground truth, so nothing is called poison."""
    chosen = max(sifted, key=lambda t: t.kind == "cultivate")
    flagged = chosen.estimates["flagged"]
    many = round(flagged.value * flagged.n)
    drawn = list(_suspects(chosen))
    if record := {name: t for name, t in chosen.evidence.items() if name.startswith("dynamics_")}:
        bad = chosen.evidence["flagged"].bool()
        name = "dynamics_loss" if "dynamics_loss" in record else next(iter(record))
        groups = {"suspected": record[name][bad], "the other rows": record[name][~bad]}
        drawn.append(figures.dynamics(groups, axis=name.removeprefix("dynamics_")))
    counts = ", ".join(f"{t.method.rpartition('/')[2]} {t.estimates['flagged'].value:.1%}" for t in sifted)
    return Finding(
        id="poisoning/data",
        title="Suspicious training rows",
        state="found" if many else "clear",
        claim=f"{chosen.method} flags {many} of {flagged.n} training rows; flagged in all: {counts}. A flag is a "
        "reason to look, not a proof: the list is in suspects.csv.",
        cell=("data", "integrity"),
        estimates={"flagged": flagged},
        threat=chosen.threat,
        checks=_checks(sifted),
        figures=tuple(drawn),
        remedy="Look at the rows in suspects.csv, or train around them.",
        remedy_methods=("poisoning/dlp",),
        tags=chosen.threat.tags,
        cost=_total(sifted),
        trials=tuple(t.fingerprint for t in sifted),
        reproduce=_reproduce(command, chosen),
        tables={"suspects.csv": _table(chosen)} if many else {},
    )


def _model(inspected: Sequence[Trial], table: Mapping[str, Rule], command: str) -> Finding:
    chosen = max(inspected, key=lambda t: t.estimates["flagged"].value)
    flagged = chosen.evidence["flagged"].bool()
    classes = [int(k) for k in flagged.nonzero().squeeze(1)]
    level = _worse_if_any(chosen.estimates["flagged"], table)
    said = f"flags class {', '.join(map(str, classes))} as the target of a backdoor" if classes else "flags no class"
    scores = chosen.evidence["anomaly"]
    return Finding(
        id="poisoning/model",
        title="Signs of a backdoor in the model",
        state="found" if classes else "clear",
        severity=level if classes else Severity.info,
        because=because("poisoning.flagged_classes", chosen.estimates["flagged"], table) if classes else "",
        claim=f"{chosen.method} {said}: the anomaly of the most suspicious of {len(flagged)} classes is "
        f"{float(scores.max()):.2f}.",
        cell=("weights", "integrity"),
        estimates={"classes flagged": chosen.estimates["flagged"], "anomaly": chosen.estimates["typical_anomaly"]},
        threat=chosen.threat,
        checks=_checks(inspected),
        figures=tuple(_triggers(chosen)),
        remedy="Do not ship the model before the flagged class is explained; repair it with clean rows, or train again."
        if classes
        else "No trigger that is much smaller than the others was found; triggers that are no patch may be missed.",
        remedy_methods=("poisoning/ft_sam", "poisoning/dlp") if classes else (),
        tags=chosen.threat.tags,
        cost=_total(inspected),
        trials=tuple(t.fingerprint for t in inspected),
        reproduce=_reproduce(command, chosen),
    )


def _worse_if_any(flagged: Estimate, table: Mapping[str, Rule]) -> Severity:
    return severity("poisoning.flagged_classes", flagged, table)


def _defences(tried: Sequence[Trial], command: str) -> Finding:
    best = min(tried, key=_left)
    names = {_named(t): t.estimates["attack_success"] for t in tried if "attack_success" in t.estimates}
    return Finding(
        id="poisoning/defences",
        title="Defences tried against a known attack",
        state="found",
        claim=f"{best.method} against {best.params['attack']}: {_remedy(best)}",
        cell=("training", "integrity"),
        estimates={
            name.replace("_", " "): best.estimates[name]
            for name in ("attack_success", "undefended_attack_success", "accuracy", "undefended_accuracy", "separation")
            if name in best.estimates
        },
        threat=best.threat,
        checks=_checks(tried),
        figures=(figures.bars(names, axis="triggered rows answered as wanted", name="defended"),) if names else (),
        remedy="",
        tags=best.threat.tags,
        cost=_total(tried),
        trials=tuple(t.fingerprint for t in tried),
        reproduce=_reproduce(command, best),
    )


def _left(trial: Trial) -> float:
    """What a defence leaves of an attack, and what it costs: lower is better."""
    harm = any(check.name == "the defence is harmless" and not check.passed for check in trial.checks)
    success = trial.estimates.get("attack_success")
    return (1.0 if success is None else success.value) - trial.estimates["accuracy"].value + harm


def _remedy(best: Trial | None) -> str:
    if best is None:
        return "Train with a method that withstands poisoned rows, and keep the source of every row."
    found = best.estimates
    fall = (
        f"brought attack success from {found['undefended_attack_success'].value:.1%} to "
        if "attack_success" in found
        else ""
    )
    success = f"{found['attack_success'].value:.1%}, " if "attack_success" in found else ""
    return f"{best.method} {fall}{success}accuracy changed by {100 * found['accuracy_change'].value:+.1f} points."


def _remedied(best: Trial) -> dict[str, Estimate]:
    names = ("attack_success", "accuracy", "recovered_accuracy")
    return {name.replace("_", " "): best.estimates[name] for name in names if name in best.estimates}


def _shown(trial: Trial) -> Iterable[Figure]:
    if "example_clean" in trial.evidence:
        e = trial.evidence
        yield tiles.examples(
            e["example_clean"], e["example_moved"], e["example_label"].tolist(), e["example_answer"].tolist()
        )


def _suspects(trial: Trial) -> Iterable[Figure]:
    pictures = trial.evidence.get("suspect")
    if pictures is not None and pictures.ndim == 4 and len(pictures):
        places, labels = trial.evidence["suspect_row"].tolist(), trial.evidence["suspect_label"].tolist()
        captions = [f"{row}: {label}" for row, label in zip(places, labels, strict=True)]
        yield tiles.gallery(
            pictures,
            captions,
            caption="The most suspicious training rows, with their row numbers and labels.",
            alt=f"{len(captions)} training images, row and label: {'; '.join(captions)}.",
            name="suspects",
        )


def _table(trial: Trial) -> str:
    """The flagged rows as CSV, the most suspicious first: their place in the training data, label and suspicion."""
    scores, flagged = trial.evidence["suspicion"], trial.evidence["flagged"].bool()
    rows, labels = trial.evidence["row"], trial.evidence["label"]
    order = [int(i) for i in scores.argsort(descending=True) if bool(flagged[i])]
    return "row,label,suspicion\n" + "".join(f"{rows[i]},{labels[i]},{scores[i]:.6g}\n" for i in order)


def _triggers(trial: Trial) -> Iterable[Figure]:
    if "mask" in trial.evidence:
        scores = trial.evidence["anomaly"]
        order = scores.argsort(descending=True)[:6]
        pictures = (trial.evidence["mask"] * trial.evidence["pattern"])[order].clamp(0, 1)
        captions = [f"{int(k)}: {float(scores[k]):.1f}" for k in order]
        yield tiles.gallery(
            pictures,
            captions,
            caption="The triggers recovered for the most anomalous classes, with class and anomaly.",
            alt=f"{len(captions)} recovered triggers, class and anomaly: {'; '.join(captions)}.",
            name="triggers",
        )


def _checks(trials: Sequence[Trial]) -> tuple[Check, ...]:
    """Every doubt once: the failed one if it failed anywhere."""
    merged: dict[str, Check] = {}
    for trial in trials:
        for check in trial.checks:
            if check.name not in merged or not check.passed:
                merged[check.name] = check
    return tuple(merged.values())


def _total(trials: Sequence[Trial]) -> Cost:
    return Cost(
        sum(t.cost.forwards for t in trials),
        sum(t.cost.backwards for t in trials),
        sum(t.cost.queries for t in trials),
        sum(t.cost.seconds for t in trials),
        max(t.cost.peak_bytes for t in trials),
    )


def _reproduce(command: str, trial: Trial) -> str:
    """The command that repeats a trial: what was asked, and every parameter that is not the default."""
    text = command.replace("{method}", trial.method) + f" --rows {trial.params['rows']}"
    for name in OWN:
        if name in trial.params:
            text += f" --{name.replace('_', '-')} {trial.params[name]}"
    with suppress(ValueError):  # a method that is not in the catalogue has no command
        usual = describe(find(trial.method)).params
        for name, value in trial.params.items():
            if name in usual and value != usual[name] and isinstance(value, bool | int | float | str):
                text += f" --{name.replace('_', '-')} {value}"
    return text
