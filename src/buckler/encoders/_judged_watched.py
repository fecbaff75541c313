"""Whether those who copy an encoder are noticed by what they ask, whom else an alarm meets, and what is left to each.

A finding is information, as one on a guard is. It says first who is not told from a thief: whoever has a use for all
that the encoder knows.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

from buckler.encoders._problems import PROBLEMS
from buckler.encoders._watched import EXPECTING
from buckler.findings import Finding
from buckler.judging import named, resting
from buckler.report import figures
from buckler.trial import Trial

ASKED = ("rows", "train_rows", "encoder_steps", "queries", "attack")
"""What `evaluate` may be asked beside a method's own knobs, as flags."""
WORDS = {
    "task": "different images of two classes",
    "often": "each of these images often",
    "half": "all they have of half of the classes",
    "whole": "all they have of all classes",
    "digits": "all they have of another kind",
}
"""Honest accounts by what they send."""
REMEDY = (
    "Take an alarm as a reason to look, not as proof: it says that an account asks about all that the encoder knows, "
    "and so may one who has a use for it. Accounts are cheap: tie them to somebody, and turn each one's features."
)


def of_watching(trials: Sequence[Trial], command: str) -> list[Finding]:
    """A finding for each detector; none is graded."""
    return [_finding(trial, command) for trial in trials]


def _finding(trial: Trial, command: str) -> Finding:
    e, name = trial.estimates, re.sub(r"[\W_]+", "-", trial.method.rpartition("/")[2])
    honest = {kind: words for kind, words in WORDS.items() if f"flagged_{kind}" in e}
    bars = {f"honest: {words}": e[f"flagged_{kind}"] for kind, words in honest.items()}
    found = Finding(
        id=f"encoders/stealing/detection/{name}",
        title=f"Whether a thief of the encoder is noticed by what it asks: {name.replace('-', ' ')}",
        state="found",
        claim=_claim(trial),
        cell=PROBLEMS["stealing"][1],
        estimates={f"flagged, {words}": e[f"flagged_{kind}"] for kind, words in honest.items()}
        | {"flagged, thieves": e["flagged_thief"], "question that gives a thief away": e["first_thief"]}
        | {
            f"how well a thief is told, both asking as much, from one who sends {WORDS[kind]}": e[f"apart_{kind}"]
            for kind in WORDS
            if f"apart_{kind}" in e
        }
        | {f"accuracy of a thief over the encoder's, {w}": e[f"ratio_{n}_few"] for n, w in EXPECTING.items()}
        | {
            "the same, not watched": e["ratio_undefended_few"],
            "the same, an untrained network": e["ratio_untrained_few"],
            "change for users with a task": e["change_user_task"],
            "change for users with a use for all": e["change_user_whole"],
        },
        figures=(
            figures.bars({**bars, "thieves": e["flagged_thief"]}, axis="accounts flagged", name=f"flagged-{name}"),
        ),
        remedy=REMEDY,
    )
    return resting(found, [trial], trial, command, ASKED)


def _claim(trial: Trial) -> str:
    e, evidence = trial.estimates, trial.evidence
    asked, budget, accounts = (int(evidence[key][0]) for key in ("asked", "budget", "accounts"))
    honest = ", ".join(f"{e[f'flagged_{kind}'].value:.0%} of those who send {words}" for kind, words in _known(trial))
    first = e["first_thief"].value
    when = f", in the median at question {first:.0f} of {budget}" if math.isfinite(first) else ""
    told = e["apart_whole"]
    alike = "" if told.low > 0.5 else " Whoever has a use for all classes is not told from a thief at all."
    left = {name: f"{e[f'ratio_{name}_few'].value:.1%}" for name in ("undefended", "untrained", *EXPECTING)}
    task, whole = (f"{100 * e[f'change_user_{kind}'].value:+.1f} points" for kind in ("task", "whole"))
    return (
        f"{named(trial).removeprefix('encoders/')} flags {e['flagged_thief'].value:.0%} of thieves{when}; of honest "
        f"accounts, {honest}. After {asked} questions each, it ranks a thief above one with "
        f"a task in {e['apart_task'].value:.0%} of pairs.{alike} Of the encoder's accuracy with few labels a thief has "
        f"{left['undefended']} unwatched (an untrained network {left['untrained']}), {left['stopped']} when stopped at "
        f"the alarm, {left['naive']} when noise grows with the score, {left['narrow']} when it asks only for images of "
        f"one task, and {left['many']} when it asks from {accounts} accounts whose features are turned, noise and all; "
        f"from as many whose features are not, all that is to be had. Noise and turning change what users with a task "
        f"are right on by {task}, and those with a use for all, who ask as much as a thief, by {whole}."
    )


def _known(trial: Trial) -> list[tuple[str, str]]:
    return [(kind, words) for kind, words in WORDS.items() if f"flagged_{kind}" in trial.estimates]
