"""From the area's trials to findings, for each kind of method where it is said, and to the table of ten problems."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Mapping, Sequence

from buckler.encoders._judged_pretraining import of_pretraining
from buckler.encoders._problems import PROBLEMS, Row, lines
from buckler.findings import Finding, NotMeasured, Rule, Verdicts
from buckler.trial import Trial

Judged = tuple[Verdicts, Sequence[Row]]
Group = Callable[[Sequence[Trial], Mapping[str, Rule], str], Judged]
GROUPS: Mapping[tuple[str, ...], Group] = {
    ("pretrain",): of_pretraining,
}
"""What is made of the trials of some kinds, or of some methods by their paths; each is given those, the severity
rules, and the command."""


def judge(trials: Sequence[Trial], limits: Mapping[str, float], table: Mapping[str, Rule], command: str) -> Verdicts:
    """Findings, with the table of the ten problems first, and what could not be measured; see `findings.Verdicts`.

    `limits` are not used here, `table` holds the severity rules, and `command` is the beginning of a command that
    repeats a measurement, with `{method}` for its path.
    """
    del limits
    parts = [
        group([t for t in trials if t.kind in kinds or t.method in kinds], table, command)
        for kinds, group in GROUPS.items()
    ]
    rows = [row for _, found in parts for row in found]
    missing = tuple(missed for verdict, _ in parts for missed in verdict.not_measured)
    findings = [finding for verdict, _ in parts for finding in verdict.findings]
    return Verdicts(
        (*_ten(rows, missing), *findings),
        missing,
        tuple(says for verdict, _ in parts for says in verdict.contradictions),
    )


def _ten(rows: Sequence[Row], missing: Sequence[NotMeasured]) -> tuple[Finding, ...]:
    """The table of an audit that measured any of the ten; it is judged by no rule, as its rows are."""
    if not rows:
        return ()
    grid = lines(rows, {missed.cell: missed.why for missed in missing})
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(grid)
    found = Finding(
        id="encoders/ten",
        title="The ten problems of encoders",
        state="found",
        claim=f"{len(rows)} of the {len(PROBLEMS)} problems of self-supervised encoders were measured.",
        cell=("embeddings", "integrity"),
        grid=grid,
        tables={"ten-problems.csv": text.getvalue()},
    )
    return (found,)
