"""A backdoor in the encoder: what whoever trains it can hide there, whether one is found, and what repairs leave of it.

What an implant does says what can be hidden in weights, and nothing against the subject's encoder; the inspection of
that is judged, where it found what was planted and spared what is clean. Inspections and repairs are worth what they
are worth against the worse of two attackers, one of whom knows them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch

from buckler.encoders._problems import PROBLEMS, Row
from buckler.findings import Figure, Finding, NotMeasured, Rule, Severity, Verdicts, because, severity
from buckler.judging import named, resting
from buckler.report import figures, tiles
from buckler.report.clouds import clouds
from buckler.stats import Estimate
from buckler.trial import Trial

RULE = "encoders.backdoor_signs"
TITLE, CELL = PROBLEMS["backdoor"]
SAYS = "rows with the trigger answered as wanted"
KNOWN = {"": "", "adaptive_": ", attacked by who knows it"}
"""The attackers on a defence, by what their evidence begins with, and what is said of them."""
ASKED = ("rows", "train_rows", "encoder_steps", "attack")
"""What `evaluate` may be asked beside a method's own knobs, as flags."""
BEYOND = "beyond a clean encoder repaired alike"


def of_backdoor(trials: Sequence[Trial], table: Mapping[str, Rule], command: str) -> tuple[Verdicts, tuple[Row, ...]]:
    """The findings on implants, on the inspection of the encoder, and on repairs; and the row of the problem."""
    missing = tuple(NotMeasured(named(t), t.reason, CELL) for t in trials if t.status != "ok")
    good = [t for t in trials if t.status == "ok"]
    implants, inspected, repairs = ([t for t in good if t.kind == kind] for kind in ("implant", "inspect", "repair"))
    findings = [_inspected(inspected, table, command)] if inspected else []
    findings += [_implanted(implants, repairs, command)] if implants else []
    findings += [_repaired(repairs, command)] if repairs else []
    return Verdicts(tuple(findings), missing), _row(implants, repairs)


def _row(implants: Sequence[Trial], repairs: Sequence[Trial]) -> tuple[Row, ...]:
    """Of the strongest implant, or of what repairs were tried against where none was measured by itself."""
    best = _best(repairs)
    if implants:
        worst = _worst(implants)
        e = worst.estimates
        row = Row("backdoor", named(worst), _beside(e), e["success"], e["control_correct"], e["correct"])
    elif best is not None:
        e = best.estimates
        before, after = e["control_correct"], e["undefended_correct"]
        row = Row("backdoor", _attack(best), _beside(e), e["undefended_success"], before, after)
    else:
        return ()
    if best is not None:
        e, who = best.estimates, _who(best)
        spared = f" (a clean encoder repaired alike: {e[f'{who}spared_success'].value:.1%})"
        row = row._replace(defence=named(best) + KNOWN[who] + spared, left=e[f"{who}success"], costs=e["cost"])
    return (row,)


def _beside(e: Mapping[str, Estimate]) -> str:
    return f"{SAYS} (clean encoder: {e['control_success'].value:.1%})"


def _worst(implants: Sequence[Trial]) -> Trial:
    return max(implants, key=lambda t: t.estimates["beyond"].value)


def _best(repairs: Sequence[Trial]) -> Trial | None:
    """The repair that leaves least of the worse backdoor, what it costs counted in, and taken off what a clean encoder
    repaired alike obeys: a trigger out of clean images turns that as well."""
    return min(repairs, key=lambda t: t.estimates[f"{_who(t)}left"].value - t.estimates["cost"].value, default=None)


def _who(trial: Trial) -> str:
    """Of the attackers on a repair the one of whom it leaves most, beyond what a clean encoder repaired alike obeys."""
    return max(_tried(trial), key=lambda who: trial.estimates[f"{who}left"].value)


def _tried(trial: Trial) -> list[str]:
    return [who for who in KNOWN if f"{who}success" in trial.estimates]


def _attack(trial: Trial) -> str:
    asked = trial.params["attack"]
    return str(asked["method"]) if isinstance(asked, dict) else str(asked)  # pyright: ignore[reportUnknownArgumentType]


def _tasks(trial: Trial, name: str) -> dict[str, Estimate]:
    """An estimate for every task, by the task's name; that of the first, the subject's own labels, has none."""
    found = {
        key.removesuffix(name).rstrip("_"): e
        for key, e in trial.estimates.items()
        if key.endswith(name) and not key.startswith(("control_", "undefended_", "spared_"))
    }
    return {task or "labels": e for task, e in found.items()}


def _implanted(implants: Sequence[Trial], repairs: Sequence[Trial], command: str) -> Finding:
    worst, best = _worst(implants), _best(repairs)
    e = worst.estimates
    told = ", ".join(f"{estimate.value:.1%} on the task {task}" for task, estimate in _tasks(worst, "success").items())
    found = Finding(
        id="encoders/backdoor",
        title="What whoever trains the encoder can hide in it",
        state="found",
        claim=f"When {named(worst)} trains the encoder, probes of users who know nothing of it answer inputs with its "
        f"trigger as the adversary wants: {told} (clean encoder: {e['control_success'].value:.1%}). Accuracy goes from "
        f"{e['control_correct'].value:.1%} to {e['correct'].value:.1%}.",
        cell=CELL,
        estimates={SAYS: e["success"], "the same on the clean encoder": e["control_success"]}
        | {f"{SAYS}, task {task}": value for task, value in list(_tasks(worst, "success").items())[1:]}
        | {"beyond the clean encoder": e["beyond"], "accuracy": e["correct"], "accuracy before": e["control_correct"]}
        | {f"accuracy, task {task}": value for task, value in list(_tasks(worst, "correct").items())[1:]},
        figures=tuple(_pictures(worst)),
        remedy="Pre-train the encoder yourself or take it from those you trust, inspect what others have trained, and "
        "repair it with images of your own.",
        remedy_methods=("encoders/decree", "encoders/continued_pretraining" if best is None else best.method),
        remedied={} if best is None else _remedied(best),
    )
    return resting(found, implants, worst, command, ASKED)


def _remedied(repair: Trial) -> dict[str, Estimate]:
    e, name = repair.estimates, named(repair)
    left = {f"{name}{KNOWN[who]}: {SAYS}": e[f"{who}success"] for who in _tried(repair)}
    left |= {f"{BEYOND}{KNOWN[who]}": e[f"{who}left"] for who in _tried(repair)}
    return left | {"accuracy then": e["correct"], "what it costs a clean encoder": e["cost"]}


def _pictures(trial: Trial) -> Iterable[Figure]:
    e = trial.evidence
    if "example_clean" in e:
        labels = e["example_label"].tolist()
        many = len(labels)
        yield tiles.gallery(
            torch.cat([e["example_clean"], e["example_moved"]]),
            [*(str(label) for label in labels), *("trigger" for _ in labels)],
            caption="Test images without and with the trigger.",
            alt=f"{many} images of the labels {', '.join(map(str, labels))}, and the same with the trigger.",
            name="trigger",
            columns=many,
        )
    if "clean_points" in e:
        yield clouds(
            {"rows as they are": e["clean_points"], "the same rows with the trigger": e["triggered_points"]},
            caption="Features of the encoder with the backdoor, along the two directions in which they differ most.",
            name="backdoor-features",
        )


def _inspected(trials: Sequence[Trial], table: Mapping[str, Rule], command: str) -> Finding:
    shown = max(trials, key=lambda t: t.estimates["flagged"].value)
    flagged, e = shown.estimates["flagged"], shown.evidence
    bad, caught = flagged.value > 0, shown.estimates.get("adaptive_flagged")
    missed = caught is not None and caught.value == 0
    scores = f"{float(e['score'].max()):.2f}; with a planted backdoor {float(e['planted_score'].max()):.2f}"
    if "control_score" in e:
        scores += f", a clean one {float(e['control_score'].max()):.2f}"
    found = Finding(
        id="encoders/backdoor/inspection",
        title="Signs of a backdoor in the encoder",
        state="found" if bad else "not measured" if missed else "clear",
        severity=severity(RULE, flagged, table) if bad else Severity.info,
        because=because(RULE, flagged, table) if bad else "",
        claim=f"{named(shown)} {'flags' if bad else 'does not flag'} {shown.params['encoder']} (score {scores})."
        + ("" if bad else _silent(shown, missed)),
        cell=CELL,
        estimates={"flagged": flagged, "planted backdoors found": shown.estimates["planted_flagged"]}
        | ({} if caught is None else {"backdoors found of who knows the inspection": caught}),
        figures=tuple(_triggers(shown)),
        remedy="Do not build on the encoder before this is explained; repair it, or pre-train another." if bad else "",
        remedy_methods=("encoders/continued_pretraining",) if bad else (),
    )
    return resting(found, trials, shown, command, ASKED)


def _silent(trial: Trial, missed: bool) -> str:
    if not missed:
        return " A backdoor of another kind than it looks for may be missed."
    score = f"{float(trial.evidence['adaptive_score'].max()):.2f}"
    e = trial.estimates
    obeyed = f"{e['adaptive_success'].value:.1%} of rows obey, and {e['adaptive_without_success'].value:.1%} without it"
    return (
        f" That rules out no more than such a backdoor: one of an adversary who knows the inspection, with a trigger "
        f"blended out of clean images that {obeyed}, is not flagged either (score {score})."
    )


def _triggers(trial: Trial) -> Iterable[Figure]:
    e = trial.evidence
    names = {"": "this encoder", "planted_": "planted", "control_": "clean", "adaptive_": "planted by who knows"}
    inverted = {words: (e[f"{of}mask"] * e[f"{of}pattern"])[:1] for of, words in names.items() if f"{of}mask" in e}
    if inverted:
        pictures = {"what was planted": e["planted_trigger"], **inverted}
        yield tiles.gallery(
            torch.cat([*pictures.values()]).clamp(0, 1),
            list(pictures),
            caption="The trigger that was planted, and what the inspection finds in each encoder.",
            alt=f"{len(pictures)} images of triggers: {', '.join(pictures)}.",
            name="inverted-triggers",
        )


def _repaired(repairs: Sequence[Trial], command: str) -> Finding:
    best = _best(repairs)
    if best is None:
        raise ValueError("expected a repair, got none")
    e, who = best.estimates, _who(best)
    least = e[f"{who}success"].value, e[f"{who}spared_success"].value
    more = "more than" if e[f"{who}left"].low > 0 else "not surely more than"
    worse_first = sorted(_tried(best), key=lambda by: by != who)
    found = Finding(
        id="encoders/backdoor/repair",
        title="What repairs leave of a backdoor in the encoder",
        state="found",
        claim=f"Of rows with the trigger of {_attack(best)} {e['undefended_success'].value:.1%} get the answer wanted "
        f"(clean encoder: {e['control_success'].value:.1%}): {'; '.join(map(_told, repairs))}. {named(best)}"
        f"{KNOWN[who]}{',' if who else ''} leaves least: {least[0]:.1%}, {more} the {least[1]:.1%} of a clean encoder "
        "repaired alike. Intervals are over rows, of one training each.",
        cell=CELL,
        estimates={f"{SAYS}, repaired{KNOWN[by]}": e[f"{by}success"] for by in worse_first}
        | {f"{BEYOND}{KNOWN[by]}": e[f"{by}left"] for by in worse_first}
        | {SAYS: e["undefended_success"], "accuracy, repaired": e["correct"]}
        | {"the same on a clean encoder": e["control_success"], "what it costs a clean encoder": e["cost"]},
        figures=(
            figures.bars(
                {"unrepaired": e["undefended_success"]}
                | {
                    f"{named(t).removeprefix('encoders/')}{KNOWN[by]}{of}": t.estimates[f"{by}{key}"]
                    for t in repairs
                    for by in _tried(t)
                    for of, key in {"": "success", " (clean encoder)": "spared_success"}.items()
                },
                axis=SAYS,
                name="backdoor-repaired",
            ),
        ),
    )
    return resting(found, repairs, best, command, ASKED)


def _told(repair: Trial) -> str:
    e = repair.estimates
    spared = {who: f"(a clean encoder repaired alike: {e[f'{who}spared_success'].value:.1%})" for who in _tried(repair)}
    knows = "".join(
        f", and {e[f'{who}success'].value:.1%} of the backdoor of who knows it {spared[who]}" for who in spared if who
    )
    return (
        f"{named(repair)} leaves {e['success'].value:.1%} {spared['']}{knows}, brings accuracy from "
        f"{e['undefended_correct'].value:.1%} to {e['correct'].value:.1%}, and changes that of a clean encoder by "
        f"{100 * e['cost'].value:+.1f} points"
    )
