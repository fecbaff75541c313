"""From the area's trials to findings, for each kind of method where it is said: see `GROUPS`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from buckler.findings import Rule, Verdicts
from buckler.theft._judged_extraction import of_extraction
from buckler.theft._judged_making import of_making
from buckler.theft._judged_owned import of_ownership
from buckler.theft._judged_watched import of_detection
from buckler.trial import Trial

Group = Callable[[Sequence[Trial], Mapping[str, Rule], str], Verdicts]
GROUPS: Mapping[tuple[str, ...], Group] = {
    ("extract", "guard"): of_extraction,
    ("own",): of_ownership,
    ("guess",): of_making,
    ("watch",): of_detection,
}
"""What is made of the trials of some kinds; each is given those, the severity rules, and the command."""


def judge(trials: Sequence[Trial], limits: Mapping[str, float], table: Mapping[str, Rule], command: str) -> Verdicts:
    """Findings and what could not be measured; see `findings.Verdicts`.

    `limits` are not used here, `table` holds the severity rules, and `command` is the beginning of a command that
    repeats a measurement, with `{method}` for its path.
    """
    del limits
    parts = [group([t for t in trials if t.kind in kinds], table, command) for kinds, group in GROUPS.items()]
    return Verdicts(
        tuple(finding for part in parts for finding in part.findings),
        tuple(missing for part in parts for missing in part.not_measured),
        tuple(says for part in parts for says in part.contradictions),
    )
