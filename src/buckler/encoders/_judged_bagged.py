"""What is proven of a vote above encoders of disjoint parts, and whether that is worth more than not to pre-train."""

from __future__ import annotations

from collections.abc import Mapping

from buckler import stats
from buckler.encoders._problems import PROBLEMS
from buckler.findings import Figure, Finding
from buckler.judging import named, resting
from buckler.report import figures
from buckler.threat import Share
from buckler.trial import Trial

ASKED = ("rows", "train_rows", "encoder_steps", "share", "pretraining")
"""What `evaluate` may be asked beside a method's own knobs, as flags."""
OF: Mapping[str, str] = {"few_": "probes of few labels", "": "probes of all labels"}
SHOWN = {
    "certified": "right with a proof against rows added or removed",
    "changed_certified": "right with a proof against rows changed",
    "untrained_correct": "right by the vote of untrained networks, which no row reaches",
    "worth": "the proof, less the vote of untrained networks",
    "correct": "right by the vote",
    "noisy_correct": "right by the vote, rows changed for noise",
    "control_correct": "right by one encoder of all rows",
    "kept": "the vote, less one encoder of all rows",
}


def of_bagged(trial: Trial, command: str) -> Finding:
    """The finding on one trial of a vote."""
    e, many = trial.estimates, proven(trial)
    rows, voters = f"{many} rows" if many > 1 else "one row", trial.evidence["votes"].shape[1]
    found = Finding(
        id=f"encoders/poisoning/certificate/{trial.method.rpartition('/')[2]}",
        title="What is proven against poisoned pre-training data",
        state="found",
        claim=f"{_says(trial, 'few_')} {_says(trial, '')} The proof is for {rows} added or removed anywhere in "
        f"what is pre-trained on ({trial.params['share']} of it); a row that is changed counts twice. "
        f"No vote of {voters} proves anything for more than {voters // 2}. The labelled rows of a probe are trusted.",
        cell=PROBLEMS["poisoning"][1],
        estimates={
            f"{words}, {of}": e[_key(name, few)]
            for few, of in OF.items()
            for name, words in SHOWN.items()
            if _key(name, few) in e
        },
        figures=tuple(_curve(trial, few, of) for few, of in OF.items()),
    )
    return resting(found, [trial], trial, command, ASKED)


def proven(trial: Trial) -> int:
    """For how many rows, added or removed, it was asked what is proven."""
    return Share.parse(str(trial.params["share"])).of(len(trial.evidence["part"]))


def _key(name: str, few: str) -> str:
    head, joint, last = name.rpartition("_")
    return f"{head}{joint}{few}{last}"


def _says(trial: Trial, few: str) -> str:
    e = {name: trial.estimates[_key(name, few)] for name in ("correct", "certified", "untrained_correct", "worth")}
    worth = e["worth"]
    verdict = (
        "so the proof is worth more than not to pre-train"
        if worth.low > 0
        else "so not to pre-train is better than this proof"
        if worth.high < 0
        else "and which of the two is better is not sure"
    )
    return (
        f"Above the encoders of {named(trial)}, a vote of {OF[few]} is right on {e['correct'].value:.1%} of test rows, "
        f"and on {e['certified'].value:.1%} with a proof; above as many untrained networks, which nothing can poison, "
        f"on {e['untrained_correct'].value:.1%}: {verdict}."
    )


def _curve(trial: Trial, few: str, of: str) -> Figure:
    radius = trial.evidence[f"{few}radius"]
    axis = list(range(max(int(radius.max()), proven(trial)) + 2))
    each = [(radius >= many).float() for many in axis]
    shares = [stats.mean(e.mean(1), "proven") if few else stats.share(e.bool(), "proven") for e in each]
    idle = [trial.estimates[_key("untrained_correct", few)]] * len(axis)
    radii = [float(many) for many in axis]
    return figures.security_curve(
        {"untrained networks, any rows": (radii, idle)},
        certified=(radii, shares),
        proven_of="the vote",
        mark=float(proven(trial)),
        axis=f"rows added or removed, {of.removeprefix('probes of ')}",
        name=f"poisoning-proven{'-few' if few else ''}",
    )
