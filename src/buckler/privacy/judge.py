"""From the area's trials to findings, for each kind of method where it is said: see `GROUPS`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from buckler.findings import Rule, Verdicts
from buckler.privacy._judged_audit import of_audit
from buckler.privacy._judged_guarded import of_guards
from buckler.privacy._judged_guessing import of_guesses
from buckler.privacy._judged_membership import of_membership
from buckler.privacy._judged_protection import of_protection
from buckler.privacy._judged_reconstruction import of_reconstruction
from buckler.privacy._judged_unlearning import of_unlearning
from buckler.trial import Trial

Group = Callable[[Sequence[Trial], Mapping[str, Rule], str], Verdicts]
GROUPS: Mapping[str, Group] = {
    "infer": of_membership,
    "protect": of_protection,
    "guard": of_guards,
    "audit": of_audit,
    "reconstruct": of_reconstruction,
    "guess": of_guesses,
    "unlearn": of_unlearning,
}
"""What is made of the trials of each kind; each is given those of its kind, the severity rules, and the command."""


def judge(trials: Sequence[Trial], limits: Mapping[str, float], table: Mapping[str, Rule], command: str) -> Verdicts:
    """Findings and what could not be measured; see `findings.Verdicts`.

    `limits` are not used here, `table` holds the severity rules, and `command` is the beginning of a command that
    repeats a measurement, with `{method}` for its path.
    """
    del limits
    parts = [group([t for t in trials if t.kind == kind], table, command) for kind, group in GROUPS.items()]
    return Verdicts(
        tuple(finding for part in parts for finding in part.findings),
        tuple(missing for part in parts for missing in part.not_measured),
        tuple(says for part in parts for says in part.contradictions),
    )
