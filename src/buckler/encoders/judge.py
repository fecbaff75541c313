"""From the area's trials to findings, for each kind of method where it is said, and to the table of ten problems."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Mapping, Sequence

from buckler.encoders._judged_backdoor import of_backdoor
from buckler.encoders._judged_depletion import of_depletion
from buckler.encoders._judged_evasion import of_evasion
from buckler.encoders._judged_guesses import of_guesses
from buckler.encoders._judged_membership import of_membership
from buckler.encoders._judged_owned import of_ownership
from buckler.encoders._judged_pairs import of_pairs
from buckler.encoders._judged_poisoning import of_poisoning
from buckler.encoders._judged_pretraining import of_pretraining
from buckler.encoders._judged_reconstruction import of_reconstruction
from buckler.encoders._judged_stealing import of_stealing
from buckler.encoders._judged_tracing import of_tracing
from buckler.encoders._problems import PROBLEMS, Row, lines
from buckler.findings import Finding, Rule, Verdicts
from buckler.trial import Trial

Judged = tuple[Verdicts, Sequence[Row]]
Group = Callable[[Sequence[Trial], Mapping[str, Rule], str], Judged]
GROUPS: Mapping[tuple[str, ...], Group] = {
    ("pretrain",): of_pretraining,
    ("encoders/sponge", "encoders/query_flood"): of_depletion,
    ("encoders/pair_poisoning",): of_pairs,
    ("evade", "certify", "encoders/adversarial_contrastive"): of_evasion,
    ("extract", "guard", "watch"): of_stealing,
    ("own",): of_ownership,
    ("infer", "encoders/dp_rotation"): of_membership,
    ("encoders/data_tracing", "encoders/density_inference"): of_tracing,
    ("reconstruct",): of_reconstruction,
    ("guess",): of_guesses,
    ("implant", "inspect", "repair"): of_backdoor,
    ("poison", "bag"): of_poisoning,
}
"""What is made of the trials of some kinds, or of some methods by their paths; each is given those, the severity
rules, and the command."""


def judge(trials: Sequence[Trial], limits: Mapping[str, float], table: Mapping[str, Rule], command: str) -> Verdicts:
    """Findings, with the table of the ten problems first, and what could not be measured; see `findings.Verdicts`.

    `limits` are not used here, `table` holds the severity rules, and `command` is the beginning of a command that
    repeats a measurement, with `{method}` for its path.
    """
    del limits
    own = {name for kinds in GROUPS for name in kinds if "/" in name}
    parts = [
        group([t for t in trials if (t.method if t.method in own else t.kind) in kinds], table, command)
        for kinds, group in GROUPS.items()
    ]
    rows = [row for _, found in parts for row in found]
    missing = tuple(missed for verdict, _ in parts for missed in verdict.not_measured)
    findings = [finding for verdict, _ in parts for finding in verdict.findings]
    return Verdicts(
        (*_ten(rows, trials, findings), *findings),
        missing,
        tuple(says for verdict, _ in parts for says in verdict.contradictions),
    )


def _ten(rows: Sequence[Row], trials: Sequence[Trial], findings: Sequence[Finding]) -> tuple[Finding, ...]:
    """The table of an audit that measured any of the ten; it is judged by no rule, as its rows are."""
    if not rows:
        return ()
    grid = lines(rows, trials, {finding.id: finding for finding in findings})
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(grid)
    found = Finding(
        id="encoders/ten",
        title="The ten problems of encoders",
        state="found",
        claim=f"{len({row.problem for row in rows})} of the {len(PROBLEMS)} problems of self-supervised encoders were "
        "measured.",
        cell=PROBLEMS[rows[0].problem][1],
        grid=grid,
        tables={"ten-problems.csv": text.getvalue()},
    )
    return (found,)
