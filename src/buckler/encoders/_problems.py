"""The ten problems, and the row that each has in the table of an audit.

Jia, Liu and Gong, "10 security and privacy problems in large foundation models", in AI Embedded Assurance for Cyber
Systems, Springer, 2023, https://arxiv.org/abs/2110.15444: six of confidentiality, three of integrity, one of
availability.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from buckler.findings import Cell
from buckler.stats import Estimate

PROBLEMS: Mapping[str, tuple[str, Cell]] = {
    "tracing": ("Data tracing and auditing", ("data", "confidentiality")),
    "membership": ("Membership", ("embeddings", "confidentiality")),
    "reconstruction": ("Reconstruction of inputs", ("embeddings", "confidentiality")),
    "attributes": ("Attributes and properties", ("embeddings", "confidentiality")),
    "making": ("Stealing hyper-parameters", ("queries", "confidentiality")),
    "stealing": ("Stealing parameters", ("queries", "confidentiality")),
    "backdoor": ("Backdoor", ("weights", "integrity")),
    "poisoning": ("Poisoning", ("training", "integrity")),
    "evasion": ("Evasion", ("queries", "integrity")),
    "depletion": ("Resource depletion", ("queries", "availability")),
}
"""By the name that ends the finding's id, `encoders/NAME`: the title, and the place on the life-cycle map."""


class Row(NamedTuple):
    """What is known of a problem: the strongest `attack` and its `effect`, how good the encoder is downstream `before`
    and `after` it where it changes the encoder, and the best `defence` that was tried, with what is `left` of the
    effect and what the defence `costs` in accuracy downstream."""

    problem: str
    attack: str
    says: str
    """What the effect is a number of, in a few words: `area under the ROC`."""
    effect: Estimate
    before: Estimate | None = None
    after: Estimate | None = None
    defence: str = ""
    left: Estimate | None = None
    costs: Estimate | None = None


def lines(rows: Sequence[Row], missing: Mapping[Cell | None, str]) -> tuple[tuple[str, ...], ...]:
    """The ten rows in their order, with a head; of a problem without a row the reason why, by its place."""
    head = ("problem", "attack", "effect", "accuracy downstream", "best defence tried", "effect left", "costs")
    known = {row.problem: row for row in reversed(rows)}
    return (
        head,
        *(
            _line(f"{n}. {PROBLEMS[name][0]}", known.get(name), missing.get(PROBLEMS[name][1], ""))
            for n, name in enumerate(PROBLEMS, 1)
        ),
    )


def _line(title: str, row: Row | None, why: str) -> tuple[str, ...]:
    if row is None:
        return (title, "", f"not measured: {why or 'the plan has no trial of it'}", "", "", "", "")
    moved = " to ".join(f"{estimate.value:.1%}" for estimate in (row.before, row.after) if estimate is not None)
    costs = "" if row.costs is None else f"{100 * row.costs.value:+.1f} points"
    left = "" if row.left is None else str(row.left)
    return (title, row.attack, f"{row.says}: {row.effect}", moved, row.defence or "none tried", left, costs)
