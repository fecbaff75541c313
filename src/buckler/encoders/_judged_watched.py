"""Whether those who copy an encoder are noticed by what they ask, whom else an alarm meets, and what is left to each.

A finding is information, as one on a guard is: nothing of it is graded. Accounts are told apart where both asked as
much, and beside a share of pairs stands what chance has.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

from buckler.encoders._accounts import FRAMES
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
    "often": f"each of them {FRAMES} times",
    "half": "as many images of half of the classes as a thief",
    "whole": "as many images of all classes as a thief",
    "digits": "as many images of another kind as a thief",
}
"""Honest accounts by what they send: as many as a thief, if they have them."""
WITH = {
    "task": "two classes",
    "half": "half of the classes",
    "whole": "all classes",
    "digits": "another kind of images",
}
"""What those have who are set beside thieves that asked as much."""
REMEDY = (
    "Take an alarm as a reason to look, not as proof: it says that an account asks about all that the encoder knows, "
    "and so may one who has a use for it. Accounts are cheap: tie them to somebody."
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
            "flagged at the method's own threshold, different images of two classes": e["own_task"],
            "flagged at the method's own threshold, thieves": e["own_thief"],
        }
        | {
            f"pairs in which a thief looks worse than who has {words} and asked as much": e[f"apart_{kind}"]
            for kind, words in WITH.items()
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
    many, budget, accounts = (int(evidence[key][0]) for key in ("asked", "budget", "accounts"))
    asked = dict(zip(("undefended", *EXPECTING), evidence["spent"].tolist(), strict=True))
    words = WORDS | {"task": f"{many} {WORDS['task']}"}
    honest = [f"{e[f'flagged_{kind}'].value:.0%} who send {w}" for kind, w in words.items() if f"flagged_{kind}" in e]
    first = e["first_thief"].value
    when = f", in the median at question {first:.0f} of {budget}" if math.isfinite(first) else ""
    left = {name: f"{e[f'ratio_{name}_few'].value:.1%}" for name in ("undefended", "untrained", *EXPECTING)}
    caught = int(evidence["flagged_account"].sum())
    task, whole = (f"{100 * e[f'change_user_{kind}'].value:+.1f}" for kind in ("task", "whole"))
    return (
        f"The alarm of {named(trial).removeprefix('encoders/')} meets {e['flagged_thief'].value:.0%} of thieves{when}; "
        f"of honest accounts it meets {', '.join(honest)}. After {many} questions a thief looks worse than an account "
        f"with two classes in {e['apart_task'].value:.0%} of pairs, and than one with all in "
        f"{e['apart_whole'].value:.0%} (chance: 50%). With few labels a thief's copy has {left['undefended']} of the "
        f"encoder's accuracy if nobody watches (an untrained network: {left['untrained']}), {left['stopped']} if the "
        f"account is closed at the alarm, and {left['naive']} if answers get noise that grows with suspicion. A thief "
        f"who expects this noise has {left['narrow']} by asking about two classes only ({asked['narrow']} questions), "
        f"and {left['many']} by asking from {accounts} account{'s' if accounts > 1 else ''}, {caught} of which raise "
        f"the alarm. The noise moves the accuracy of users with two classes by {task} points, and of those with all "
        f"classes by {whole}."
    )
