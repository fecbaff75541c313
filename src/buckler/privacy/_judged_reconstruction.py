"""What trials of reconstruction say: are rows rebuilt from a client's update, and classes drawn out of the weights."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch

from buckler.findings import Cell, Figure, Finding, NotMeasured, Rule, Verdicts, because, severity
from buckler.judging import resting
from buckler.privacy._judged_guessing import state_of
from buckler.report import tiles
from buckler.trial import Trial

ASKED = ("rows", "train_rows", "training_epochs")
UPDATES: Cell = ("training", "confidentiality")
WEIGHTS: Cell = ("weights", "confidentiality")
WORLDS: Mapping[str, str] = {"": "the model's own weights", "fresh_": "untrained weights"}
LADDER: Mapping[str, str] = {
    "noised_": "noise of 1% of the update's length on every entry",
    "pruned_": "only the largest tenth of the entries sent",
    "signed_": "only signs sent",
}


def of_reconstruction(trials: Sequence[Trial], table: Mapping[str, Rule], command: str) -> Verdicts:
    """A finding of updates and one of the weights, and what could not be measured."""
    missing = [NotMeasured(t.method, t.reason, _cell(t)) for t in trials if t.status != "ok"]
    good = [t for t in trials if t.status == "ok"]
    updates, weights = [t for t in good if "rebuilt" in t.estimates], [t for t in good if "nearest" in t.estimates]
    findings = [_of_updates(updates, table, command)] if updates else []
    findings += [_of_weights(weights, table, command)] if weights else []
    return Verdicts(tuple(findings), tuple(missing))


def _cell(trial: Trial) -> Cell:
    return UPDATES if "batch" in trial.params else WEIGHTS


def _of_updates(trials: Sequence[Trial], table: Mapping[str, Rule], command: str) -> Finding:
    worst, world = max(
        ((t, name) for t in trials for name in WORLDS if f"{name}rebuilt" in t.estimates),
        key=lambda pair: (pair[0].estimates[f"{pair[1]}gain"].low > 0, pair[0].estimates[f"{pair[1]}rebuilt"].low),
    )
    e = worst.estimates
    effect, gain, rule = e[f"{world}rebuilt"], e[f"{world}gain"], "privacy.rows_rebuilt"
    state, level = state_of(gain.low > 0, severity(rule, effect, table))
    batch = int(str(worst.params["batch"]))
    of = "1 row" if batch == 1 else f"{batch} rows"
    name = "rows rebuilt"
    shown = {f"{name}, {where}": e[f"{key}rebuilt"] for key, where in WORLDS.items() if f"{key}rebuilt" in e}
    shown = dict(sorted(shown.items(), key=lambda item: item[0] != f"{name}, {WORLDS[world]}"))
    for t in trials:
        if t is not worst:
            shown[f"{name}, {_named(t)}, {WORLDS[world]}"] = t.estimates.get(f"{world}rebuilt", t.estimates["rebuilt"])
    shown |= {f"{name}, {how}": e[f"{key}rebuilt"] for key, how in LADDER.items() if f"{key}rebuilt" in e}
    shown |= {
        "median PSNR, dB": e[f"{world}psnr"],
        "median PSNR of the class's mean image, dB": e["control_psnr"],
        f"{name}, the class's mean image": e["control_rebuilt"],
        "labels told": e[f"{world}told"],
    }
    claim = (
        f"From updates of {of} at {WORLDS[world]}, {_method(worst)} rebuilds {effect.value:.0%} of rows so that they "
        f"are nearer to what is rebuilt than all other rows are; the mean image of their class does so for "
        f"{e['control_rebuilt'].value:.0%}. The median PSNR is {e[f'{world}psnr'].value:.1f} dB."
    )
    bought = [f"{how}, {e[f'{key}rebuilt'].value:.0%}" for key, how in LADDER.items() if f"{key}rebuilt" in e]
    if bought:
        claim += f" The same attack, told of the defence, rebuilds: with {'; with '.join(bought)}."
    found = Finding(
        id="privacy/updates",
        title="What a federated client's update shows of its rows",
        state=state,
        severity=level,
        because="" if state == "not measured" else because(rule, effect, table, of=name),
        claim=claim,
        cell=UPDATES,
        estimates=shown,
        figures=tuple(_side_by_side(worst, world)),
        remedy=(
            "Send updates of many rows and several steps, added up by secure aggregation, so that no single client's "
            "is seen; clip them and add noise for differential privacy, with the noise that was measured to be enough. "
            "Pruning and signs alone bound nothing."
        )
        if state == "found"
        else "",
    )
    return resting(found, trials, worst, command, ASKED)


def _of_weights(trials: Sequence[Trial], table: Mapping[str, Rule], command: str) -> Finding:
    worst = max(trials, key=lambda t: (t.estimates["recognised"].low, t.estimates["psnr"].value))
    e, rule = worst.estimates, "privacy.classes_shown"
    above = e["gain"].low > 0 if "gain" in e else e["recognised"].low > 1 / e["recognised"].n
    state, level = state_of(above, severity(rule, e["recognised"], table))
    names = {
        "recognised": "classes recognised",
        "control_recognised": "classes recognised, of an untrained network",
        "nearest": "pictures nearest to their own class's mean",
        "psnr": "median PSNR to the class's mean, dB",
        "prior_psnr": "median PSNR of the mean of all rows, dB",
    }
    found = Finding(
        id="privacy/inversion",
        title="What the weights show of the classes",
        state=state,
        severity=level,
        because="" if state == "not measured" else because(rule, e["recognised"], table, of=names["recognised"]),
        claim=f"By {_method(worst)} a picture of every class is drawn out of the weights, and a model that learnt from "
        f"other rows recognises {e['recognised'].value:.0%} of them"
        + (f" (of an untrained network: {e['control_recognised'].value:.0%})" if "control_recognised" in e else "")
        + ". It shows a person's rows where a class is a person.",
        cell=WEIGHTS,
        estimates={title: e[key] for key, title in names.items() if key in e},
        figures=tuple(_classes(worst)),
        remedy=(
            "Do not publish weights whose classes are persons; answer with labels alone; train with differential "
            "privacy for whoever supplied the rows, so that no class hangs on one person."
        )
        if state == "found"
        else "",
    )
    return resting(found, trials, worst, command, ASKED)


def _method(trial: Trial) -> str:
    return trial.method.rpartition("/")[2].replace("_", " ")


def _named(trial: Trial) -> str:
    return f"{_method(trial)}, batch {trial.params['batch']}"


def _side_by_side(trial: Trial, world: str) -> Iterable[Figure]:
    """True rows above what was rebuilt of them, without and with defences."""
    true, label = trial.evidence["true"], trial.evidence["label"]
    if true.ndim != 4:
        return
    lines = [("true", true), ("rebuilt", trial.evidence[f"{world}picture"])]
    lines += [(key.rstrip("_"), trial.evidence[f"{key}picture"]) for key in LADDER if f"{key}picture" in trial.evidence]
    captions = [f"{int(label[at])}" if name == "true" else name for name, _ in lines for at in range(len(true))]
    yield tiles.gallery(
        torch.cat([pictures for _, pictures in lines]),
        captions,
        caption="Rows and their labels, what was rebuilt of them from an update, and after defences that were told.",
        alt=f"{len(true)} rows in a line, and below them what was rebuilt: {', '.join(name for name, _ in lines[1:])}.",
        name="rebuilt",
        columns=len(true),
    )


def _classes(trial: Trial) -> Iterable[Figure]:
    """The mean of every class's training rows above what was drawn."""
    means, drawn, label = (trial.evidence[name][:10] for name in ("mean", "picture", "label"))
    if means.ndim == 4:
        right = trial.evidence["recognised"]
        words = ["recognised" if bool(right[at]) else "not" for at in range(len(means))]
        yield tiles.gallery(
            torch.cat([means, drawn]),
            [*(f"{int(one)}" for one in label), *words],
            caption="The mean of every class's training rows, and what was drawn out of the weights.",
            alt=f"{len(means)} classes: mean above, drawn below; {words.count('recognised')} are recognised.",
            name="classes",
            columns=len(means),
        )
