"""The ten problems, and the row that each has in the table of an audit.

Jia, Liu and Gong, "10 security and privacy problems in large foundation models", in AI Embedded Assurance for Cyber
Systems, Springer, 2023, https://arxiv.org/abs/2110.15444: six of confidentiality, three of integrity, one of
availability.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from buckler.findings import Cell, Finding, Severity
from buckler.report._view import interval, number
from buckler.stats import Estimate
from buckler.trial import Trial

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
MEASURED_BY: Mapping[str, tuple[str, ...]] = {
    "tracing": ("encoders/data_tracing", "encoders/density_inference"),
    "membership": ("infer", "encoders/dp_rotation"),
    "reconstruction": ("reconstruct",),
    "making": ("encoders/pretraining_recipe",),
    "attributes": ("guess",),
    "stealing": ("extract", "guard", "watch", "own"),
    "backdoor": ("encoders/ctrl", "encoders/corrupt_encoder", "encoders/ssl_backdoor", "implant", "inspect", "repair"),
    "depletion": ("encoders/sponge", "encoders/query_flood", "encoders/indiscriminate"),
    "poisoning": ("poison", "bag"),
    "evasion": ("encoders/adversarial_contrastive", "evade", "certify"),
}
"""Which problem a trial is of, by its method's path, or else by its kind; pairs of images and text have two goals."""


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
    finding: str = ""
    """The id of the finding that says this, unless it is `encoders/` and the problem."""


def problem(trial: Trial) -> str:
    """Which of the problems a trial is of, whatever came of it; nothing of one that only pre-trains."""
    if trial.method == "encoders/pair_poisoning":
        return "backdoor" if trial.params.get("goal") == "backdoor" else "poisoning"
    by = {name: title for title, names in MEASURED_BY.items() for name in names}
    return by.get(trial.method, by.get(trial.kind, ""))


def lines(rows: Sequence[Row], trials: Sequence[Trial], findings: Mapping[str, Finding]) -> tuple[tuple[str, ...], ...]:
    """The ten rows in their order, with a head: of several rows of a problem the one whose finding is gravest, of
    those the first, and of a problem without one what its trials say of that."""
    head = ("problem", "attack", "effect", "accuracy downstream", "best defence tried", "effect left", "costs")
    said = {row: findings.get(row.finding or f"encoders/{row.problem}") for row in rows}

    def grave(row: Row) -> tuple[Severity, bool]:
        finding = said[row]
        return (finding.severity, finding.state == "found") if finding else (Severity.info, False)

    known = {row.problem: row for row in sorted(reversed(rows), key=grave)}
    return (
        head,
        *(
            _line(f"{n}. {PROBLEMS[name][0]}", known[name], said[known[name]])
            if name in known
            else (f"{n}. {PROBLEMS[name][0]}", "", _why([t for t in trials if problem(t) == name]), "", "", "", "")
            for n, name in enumerate(PROBLEMS, 1)
        ),
    )


def _why(trials: Sequence[Trial]) -> str:
    """Why a problem has no row: what kept its trials from saying anything, or that none of them is of its effect."""
    silent = [t for t in trials if t.status != "ok"]
    if silent:
        return f"not measured: {silent[0].reason}"
    told = ", ".join(dict.fromkeys(t.method for t in trials))
    return f"not measured but for what {told} says: see its own finding" if told else "not measured: no trial of it ran"


def _line(title: str, row: Row, finding: Finding | None) -> tuple[str, ...]:
    moved = " to ".join(f"{estimate.value:.1%}" for estimate in (row.before, row.after) if estimate is not None)
    costs = "" if row.costs is None else f"{100 * row.costs.value:+.1f} points"
    left = "" if row.left is None else _told(row.left)
    doubt = ", which decides nothing" if finding is not None and finding.state == "not measured" else ""
    effect = f"{row.says}: {_told(row.effect)}{doubt}"
    attack, defence = (name.removeprefix("encoders/") for name in (row.attack, row.defence or "none tried"))
    return (title, attack, effect, moved, defence, left, costs)


def _told(estimate: Estimate) -> str:
    """The value, its interval and n, as the rest of a report has them."""
    return f"{number(estimate)} ({interval(estimate)}; n = {estimate.n})"
