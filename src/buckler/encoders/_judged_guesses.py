"""Trials of guesses, each kind judged where it is said: attributes of inputs, shares of classes, and the making."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from buckler.encoders._judged_attributes import of_attributes
from buckler.encoders._judged_making import of_making
from buckler.encoders._judged_shares import of_shares
from buckler.encoders._problems import Row
from buckler.findings import Rule, Verdicts
from buckler.trial import Trial


def of_guesses(trials: Sequence[Trial], table: Mapping[str, Rule], command: str) -> tuple[Verdicts, tuple[Row, ...]]:
    """All of their findings; told apart by the knobs of their methods."""
    shares = [t for t in trials if "shares" in t.params]
    making = [t for t in trials if "traits" in t.params]
    others = [t for t in trials if t not in shares and t not in making]
    groups = ((of_attributes, others), (of_shares, shares), (of_making, making))
    parts = [group(some, table, command) for group, some in groups]
    return (
        Verdicts(
            tuple(finding for verdict, _ in parts for finding in verdict.findings),
            tuple(missed for verdict, _ in parts for missed in verdict.not_measured),
        ),
        tuple(row for _, rows in parts for row in rows),
    )
