"""From the area's trials to findings: can the training be poisoned, is the data, is the model, and what helps.

Three questions are asked of a subject, and each has a finding. Its pipeline: what the worst of the attacks that were
tried on it taught, beyond what a clean model answers anyway. Its data: the rows that sifters and cultivators flag as
they are. Its model: the classes that inspectors flag. A defence answers for the attack that it was tried against, and
for no other.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import torch

from buckler import stats
from buckler.findings import Cell, Figure, Finding, NotMeasured, Rule, Severity, Verdicts, because, severity
from buckler.judging import resting
from buckler.poisoning._tried import answers, attacked, detected, did, harms, left, method_of, named, short
from buckler.report import figures, tiles
from buckler.stats import Estimate
from buckler.trial import Trial

DEFENCES = ("cultivate", "repair")
TRAINING: Cell = ("training", "integrity")
BEYOND = "success beyond clean training"
ASKED = ("rows", "share", "attack", "train_rows", "clean_rows", "training_epochs")
"""What `evaluate` may be asked beside a method's own knobs, as flags."""


def judge(trials: Sequence[Trial], limits: Mapping[str, float], table: Mapping[str, Rule], command: str) -> Verdicts:
    """Findings and what could not be measured; see `findings.Verdicts`.

    `limits` are not used here, `table` holds the severity rules, and `command` is the beginning of a command that
    repeats a measurement, with `{method}` for its path.
    """
    del limits
    good = [t for t in trials if t.status == "ok"]
    poisoned = [t for t in good if t.kind == "poison"]
    attacks = [t for t in poisoned if "attack_success" in t.estimates]
    spoilers = [t for t in poisoned if "attack_success" not in t.estimates]
    tried = [t for t in good if "attack" in t.params]
    findings: list[Finding] = []
    missing = [
        NotMeasured(named(t), t.reason, TRAINING) for t in trials if t.status in ("skipped", "failed", "inconclusive")
    ]
    if attacks:
        worst, doubt, undecided = _worst(attacks, table)
        findings.append(_graded(_learnt(worst, attacks, tried, command), worst, doubt, table))
        missing += undecided
    if spoilers:
        worst, doubt, undecided = _worst(spoilers, table)
        findings.append(_graded(_spoilt(worst, spoilers, command), worst, doubt, table))
        missing += undecided
    if implants := [t for t in good if t.kind == "implant"]:
        findings.append(_implanted(implants, command))
    if sifted := [t for t in good if "suspicion" in t.evidence and "attack" not in t.params]:
        findings.append(_data(sifted, command))
    if inspected := [t for t in good if t.kind == "inspect" and "attack" not in t.params]:
        findings.append(_model(inspected, table, command))
    if tried:
        findings.append(_defences(tried, command))
    return Verdicts(tuple(findings), tuple(missing))


# ------------------------------------------------------------------------------------------------ attacks


def _worst(attacks: Sequence[Trial], table: Mapping[str, Rule]) -> tuple[Trial, str, list[NotMeasured]]:
    """The trial that weighs most, by the end of the interval that is judged, and why it decides nothing, if so.

    What decides nothing is only shown where nothing else decides; else it was not measured.
    """
    doubts = [_undecided(trial, table) for trial in attacks]
    decided = [trial for trial, doubt in zip(attacks, doubts, strict=True) if not doubt]
    worst = max(decided or attacks, key=lambda trial: _effect(trial)[1].high)
    others = [
        NotMeasured(named(trial), doubt, TRAINING)
        for trial, doubt in zip(attacks, doubts, strict=True)
        if doubt and trial is not worst
    ]
    return worst, "" if decided else _undecided(worst, table), others


def _undecided(trial: Trial, table: Mapping[str, Rule]) -> str:
    """Why an attack shows neither that the training learns from poison nor that it does not; nothing if it does."""
    rule, effect = _effect(trial)
    if severity(rule, effect, table) > Severity.info:
        return "" if effect.low > 0 else f"{effect.n} rows are too few to tell what the poison does from chance."
    doubts = (c.says for c in trial.checks if c.name == "a clean model ignores the trigger" and not c.passed)
    return next(doubts, "")


def _effect(trial: Trial) -> tuple[str, Estimate]:
    """The rule that an attack is judged by, and what the poison did beyond what clean training does, row by row."""
    if "attack_success" not in trial.estimates:
        return "poisoning.accuracy_lost", trial.estimates["accuracy_lost"]
    owed = trial.evidence["success"].to(torch.int8) - trial.evidence["control_success"].to(torch.int8)
    return "poisoning.attack_success", stats.difference(owed, "success less control_success")


def _graded(finding: Finding, worst: Trial, doubt: str, table: Mapping[str, Rule]) -> Finding:
    """`finding` with the state and the severity that the worst trial gives it."""
    if doubt:
        return replace(finding, state="not measured", claim=f"{finding.claim} This decides nothing. {doubt}")
    rule, effect = _effect(worst)
    level = severity(rule, effect, table)
    state = "found" if level > Severity.info else "clear"
    of = BEYOND if "attack_success" in worst.estimates else "accuracy lost"
    return replace(finding, state=state, severity=level, because=because(rule, effect, table, of=of))


def _learnt(worst: Trial, attacks: Sequence[Trial], tried: Sequence[Trial], command: str) -> Finding:
    remedy, methods, remedied = _remedy(worst, tried)
    found = Finding(
        id="poisoning/pipeline",
        title="What the training learns from poisoned data",
        state="clear",
        claim=f"When {method_of(worst)} touches {_touched(worst)}, {_taught(worst)}",
        cell=TRAINING,
        estimates=_before_and_after(worst),
        figures=(*_shown(worst), _bars({short(t): t.estimates["attack_success"] for t in attacks}, "attack-success")),
        remedy=remedy,
        remedy_methods=methods,
        remedied=remedied,
    )
    return resting(found, attacks, worst, command, ASKED)


def _implanted(implants: Sequence[Trial], command: str) -> Finding:
    """Of an adversary who trains the model: it says what can be hidden in weights, not what this training learns."""
    worst = max(implants, key=lambda trial: _effect(trial)[1].high)
    found = Finding(
        id="poisoning/implant",
        title="What whoever trains the model can hide in it",
        state="found",
        claim=f"When {method_of(worst)} trains the model, {_taught(worst)}",
        cell=("weights", "integrity"),
        estimates=_before_and_after(worst),
        figures=tuple(_shown(worst)),
        remedy="Train the model yourself, or take it from those you trust; inspect what others have trained.",
        remedy_methods=("poisoning/neural_cleanse", "poisoning/ft_sam"),
    )
    return resting(found, implants, worst, command, ASKED)


def _taught(attack: Trial) -> str:
    e = attack.estimates
    inputs = "inputs with its trigger" if "recovered_accuracy" in e else "the inputs that it chose"
    return (
        f"{e['attack_success'].value:.1%} of {inputs} are answered as the adversary wants "
        f"(clean training: {e['control_attack_success'].value:.1%}), and accuracy is {e['accuracy'].value:.1%} "
        f"(clean training: {e['control_accuracy'].value:.1%})."
    )


def _before_and_after(attack: Trial) -> dict[str, Estimate]:
    return {
        "attack success": attack.estimates["attack_success"],
        "attack success, clean training": attack.estimates["control_attack_success"],
        BEYOND: _effect(attack)[1],
        "accuracy": attack.estimates["accuracy"],
        "accuracy, clean training": attack.estimates["control_accuracy"],
    }


def _touched(attack: Trial) -> str:
    """How many training rows an attack touched, as the evaluator counted them; covers are named apart."""
    touched = attack.evidence["touched"].bool()
    covers = touched & ~attack.evidence.get("poisoned", touched).bool()
    many, more = int((touched & ~covers).sum()) / len(touched), int(covers.sum()) / len(touched)
    return f"{many:.1%} of the training rows" + (f", and {more:.1%} more as covers with true labels" if more else "")


def _spoilt(worst: Trial, spoilers: Sequence[Trial], command: str) -> Finding:
    lost, accuracy = worst.estimates["accuracy_lost"], worst.estimates["accuracy"]
    found = Finding(
        id="poisoning/availability",
        title="What poisoned data costs in accuracy",
        state="clear",
        claim=f"When {method_of(worst)} touches {_touched(worst)}, accuracy changes by "
        f"{0 - 100 * lost.value:+.1f} points, to {accuracy.value:.1%}.",
        cell=("training", "availability"),
        estimates={"accuracy lost": lost, "accuracy": accuracy},
        remedy="Find wrong labels before training, and keep the source of every row.",
        remedy_methods=("poisoning/label_errors",),
    )
    return resting(found, spoilers, worst, command, ASKED)


# ------------------------------------------------------------------------------------------------ data and model


def _data(sifted: Sequence[Trial], command: str) -> Finding:
    """The user's own rows, as they are: who is suspicious. There is no ground truth, so nothing is called poison."""
    chosen = max(sifted, key=lambda t: t.kind == "cultivate")
    flagged = chosen.estimates["flagged"]
    many = round(flagged.value * flagged.n)
    drawn = list(_suspects(chosen))
    if record := {name: t for name, t in chosen.evidence.items() if name.startswith("dynamics_")}:
        bad = chosen.evidence["flagged"].bool()
        name = "dynamics_loss" if "dynamics_loss" in record else next(iter(record))
        groups = {"suspected": record[name][bad], "the other rows" if many else "all rows": record[name][~bad]}
        drawn.append(figures.dynamics(groups, axis=name.removeprefix("dynamics_")))
    others = ", ".join(f"{method_of(t)} flags {t.estimates['flagged'].value:.1%}" for t in sifted if t is not chosen)
    flags = f"{many} of {flagged.n} training rows" if many else f"none of {flagged.n} training rows"
    looked = " A flag is a reason to look, not a proof: the list is in suspects.csv." if many else ""
    found = Finding(
        id="poisoning/data",
        title="Suspicious training rows",
        state="found" if many else "clear",
        claim=f"{method_of(chosen)} flags {flags}{f' ({others})' if others else ''}.{looked}",
        cell=("data", "integrity"),
        estimates={"flagged": flagged},
        figures=tuple(drawn),
        remedy="Look at the rows in suspects.csv, or train around them." if many else "",
        remedy_methods=("poisoning/dlp",) if many else (),
        tables={"suspects.csv": _table(chosen)} if many else {},
    )
    return resting(found, sifted, chosen, command, ASKED)


def _model(inspected: Sequence[Trial], table: Mapping[str, Rule], command: str) -> Finding:
    chosen = max(inspected, key=lambda t: t.estimates["flagged"].value)
    share, flagged, scores = chosen.estimates["flagged"], chosen.evidence["flagged"].bool(), chosen.evidence["anomaly"]
    classes = ", ".join(str(int(k)) for k in flagged.nonzero())
    said = f"class {classes} as the target of a backdoor" if classes else f"none of {len(flagged)} classes"
    rule = "poisoning.flagged_classes"
    found = Finding(
        id="poisoning/model",
        title="Signs of a backdoor in the model",
        state="found" if classes else "clear",
        severity=severity(rule, share, table) if classes else Severity.info,
        because=because(rule, share, table) if classes else "",
        claim=f"{method_of(chosen)} flags {said}; the highest anomaly of a class is {float(scores.max()):.2f}."
        + ("" if classes else " A trigger of another kind than it looks for may be missed."),
        cell=("weights", "integrity"),
        estimates={"classes flagged": share, "anomaly, median class": chosen.estimates["typical_anomaly"]},
        figures=tuple(_triggers(chosen)),
        remedy="Do not ship the model before the flagged class is explained; repair it with clean rows, or train again."
        if classes
        else "",
        remedy_methods=("poisoning/ft_sam", "poisoning/dlp") if classes else (),
    )
    return resting(found, inspected, chosen, command, ASKED)


# ------------------------------------------------------------------------------------------------ defences


def _defences(tried: Sequence[Trial], command: str) -> Finding:
    """What defences did to the attacks that they were tried against: the best of each, and what found each."""
    defended: dict[str, Trial] = {}
    for trial in sorted((t for t in tried if t.kind in DEFENCES), key=left):
        defended.setdefault(attacked(trial), trial)
    best = sorted(defended.values(), key=left, reverse=True)  # the attack that is answered worst comes first
    detectors = [t for t in tried if t.kind not in DEFENCES]
    shown = (*best, *detectors)[0]
    bars = {short(t): t.estimates["attack_success"] for t in tried if t.kind in DEFENCES and "success" in t.evidence}
    names = ("attack_success", "undefended_attack_success", "accuracy", "undefended_accuracy")
    estimates = {name.replace("_", " "): shown.estimates[name] for name in names if name in shown.estimates}
    finds = {"recall": "poisoned rows flagged", "found": "target classes flagged"}
    estimates |= {words: shown.estimates[name] for name, words in finds.items() if name in shown.estimates}
    found = Finding(
        id="poisoning/defences",
        title="Defences tried against a known attack",
        state="found",
        claim=" ".join([*map(did, best), *map(detected, detectors)]),
        cell=TRAINING,
        estimates=estimates,
        figures=(_bars(bars, "defended"),) if bars else (),
    )
    return resting(found, tried, shown, command, ASKED)


def _remedy(worst: Trial, tried: Sequence[Trial]) -> tuple[str, tuple[str, ...], dict[str, Estimate]]:
    """What answers an attack, in words, as methods, and as measured: the best defence that was tried against it."""
    same = [t for t in tried if t.kind in DEFENCES and answers(t, worst)]
    helped = [t for t in same if t.estimates["attack_success_change"].high < 0 and not harms(t)]
    if helped:
        best = min(helped, key=left)
        names = [name for name in ("attack_success", "accuracy", "recovered_accuracy") if name in best.estimates]
        return did(best), (best.method,), {name.replace("_", " "): best.estimates[name] for name in names}
    if same:
        names = ", ".join(method_of(t) for t in same)
        return f"No defence that was tried against it lowered attack success without harm: {names}.", (), {}
    return (
        "Train with a method that withstands poisoned rows, and keep the source of every row.",
        ("poisoning/dlp",),
        {},
    )


# ------------------------------------------------------------------------------------------------ pictures and tables


def _bars(estimates: Mapping[str, Estimate], name: str) -> Figure:
    return figures.bars(estimates, axis="triggered rows answered as wanted", name=name)


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
