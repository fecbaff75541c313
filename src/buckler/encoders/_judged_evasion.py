"""How far inputs that are moved on an encoder alone mislead what is learnt above it, and what helps.

The finding is on the worst case per row over all attacks that neither know a task nor its labels; an attack that does
is shown beside it, and so is noise. A certificate that an attack contradicts is an error.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import reduce

from torch import Tensor

from buckler import stats
from buckler.encoders._problems import PROBLEMS, Row
from buckler.findings import Figure, Finding, NotMeasured, Rule, Severity, Verdicts, because, severity
from buckler.judging import named, resting
from buckler.report import figures, tiles
from buckler.stats import Estimate
from buckler.trial import Trial

RULE = "encoders.evasion_accuracy"
TITLE, CELL = PROBLEMS["evasion"]
SAYS = "rows still right, moved on the encoder alone"
ASKED = ("rows", "train_rows", "encoder_steps", "ball")
"""What `evaluate` may be asked beside a method's own knobs, as flags."""


def of_evasion(trials: Sequence[Trial], table: Mapping[str, Rule], command: str) -> tuple[Verdicts, tuple[Row, ...]]:
    """The finding on examples, those on pre-training against them and on certificates, and the row of the problem."""
    good = [t for t in trials if t.status == "ok"]
    attacks, trained, proofs = ([t for t in good if t.kind == kind] for kind in ("evade", "pretrain", "certify"))
    missing = tuple(NotMeasured(named(t), t.reason, CELL) for t in trials if t.status != "ok")
    broken = tuple(f"{t.method}: {t.reason}" for t in trials if t.kind == "certify" and t.status == "failed")
    findings, rows = list[Finding](), tuple[Row, ...]()
    if attacks:
        found, row = _attacked(attacks, trained, table, command)
        findings.append(found)
        rows = (row,)
    findings += [_hardened(trained, command)] if trained else []
    findings += [_proven(proof, command) for proof in proofs]
    return Verdicts(tuple(findings), missing, broken), rows


def _attacked(
    attacks: Sequence[Trial], trained: Sequence[Trial], table: Mapping[str, Rule], command: str
) -> tuple[Finding, Row]:
    worst = min(attacks, key=lambda t: t.estimates["robust"].value)
    same = [t for t in attacks if _about(t) == _about(worst)]
    robust = _worst(same, "robust")
    e, limit = worst.estimates, worst.params["ball"]
    level = severity(RULE, robust, table)
    sure = severity(RULE, e["known_correct"], table) == Severity.info  # else the attacks here were too weak to clear it
    state = "clear" if level == Severity.info and sure else "found"
    bars = {"as they are": e["correct"], "noise of the same size": e["noise_correct"]}
    bars |= {named(t).removeprefix("encoders/"): t.estimates["robust"] for t in same}
    bars |= {"all of these, per row": robust, "task and labels known": e["known_correct"]}
    others = {
        f"rows still right, {name.removesuffix('_robust')}": estimate
        for name, estimate in e.items()
        if name.endswith("_robust")
    }
    imitated = {
        f"{words} as the input that {named(t)} imitates": t.estimates[name]
        for t in same
        for name, words in (("imitated", "rows answered"), ("noise_imitated", "rows answered, with noise,"))
        if name in t.estimates
    }
    helped = _best(trained, limit)
    found = Finding(
        id="encoders/evasion",
        title="What moved inputs do to all that is learnt above the encoder",
        state=state,
        severity=level,
        because=because(RULE, robust, table),
        claim=f"Changes of at most {limit}, made on the encoder without a task or a label, leave {robust.value:.1%} of "
        f"rows right of {e['correct'].value:.1%}; noise of the same size leaves {e['noise_correct'].value:.1%}, and an "
        f"adversary who knows the task {e['known_correct'].value:.1%}.",
        cell=CELL,
        estimates={SAYS: robust, "rows right as they are": e["correct"], "rows right with noise": e["noise_correct"]}
        | {"rows right when task and labels are known": e["known_correct"]}
        | others
        | imitated,
        figures=(figures.bars(bars, name="evasion"), *_pictures(worst)),
        remedy="Pre-train against such changes, or smooth what is learnt above the encoder, and ask for the proof.",
        remedy_methods=("encoders/adversarial_contrastive", "encoders/smoothed_probe"),
        remedied={} if helped is None else _remedied(helped),
    )
    row = Row("evasion", named(worst), SAYS, robust, e["correct"])
    if helped is not None:
        left, costs = helped.estimates["robust"], helped.estimates["kept"]
        row = row._replace(defence=named(helped), left=left, costs=costs)
    return resting(found, attacks, worst, command, ASKED), row


def _about(trial: Trial) -> tuple[object, ...]:
    """What two trials must share for their rows to be the same."""
    names = ("ball", "rows", "train_rows", "encoder_steps", "pretraining")
    return (trial.subject["data"], trial.seed, *(trial.params.get(name) for name in names))


def _worst(trials: Sequence[Trial], name: str) -> Estimate:
    """The share of rows that every trial leaves true."""

    def both(a: Tensor, b: Tensor) -> Tensor:
        return a & b

    return stats.share(reduce(both, (t.evidence[name] for t in trials)), name)


def _best(trained: Sequence[Trial], limit: object) -> Trial | None:
    fit = [t for t in trained if t.params["ball"] == limit]
    return max(fit, key=lambda t: t.estimates["known_correct"].value, default=None)


def _remedied(trial: Trial) -> dict[str, Estimate]:
    e, name = trial.estimates, named(trial)
    return {
        f"{name}: rows right when task and labels are known": e["known_correct"],
        "the same by plain pre-training": e["control_known_correct"],
        "gained by it": e["gained"],
        "accuracy on rows as they are, less that by plain pre-training": e["kept"],
    }


def _pictures(trial: Trial) -> Sequence[Figure]:
    shown = trial.evidence
    if "example_clean" not in shown:
        return ()
    rows = shown["example_row"]
    moved = shown["example_clean"], shown["example_moved"]
    return (tiles.examples(*moved, shown["label"][rows], shown["answer"][rows], name="evasion-examples"),)


def _hardened(trained: Sequence[Trial], command: str) -> Finding:
    best = max(trained, key=lambda t: t.estimates["gained"].value)
    e = best.estimates
    helps = "it helps" if e["gained"].low > 0 else "it harms" if e["gained"].high < 0 else "that may be chance"
    known, clean = (
        [f"{e[f'{of}{name}'].value:.1%}" for of in ("", "control_")] for name in ("known_correct", "correct")
    )
    bars = {"as they are": e["correct"], "task and labels known": e["known_correct"]}
    bars |= {f"{name}, plain": e[f"control_{of}"] for name, of in zip(bars, ("correct", "known_correct"), strict=True)}
    found = Finding(
        id="encoders/evasion/pretraining",
        title="What pre-training against moved inputs buys",
        state="found",
        claim=f"Above the encoder that {named(best)} makes, a linear probe is right on {known[0]} of rows changed by "
        f"at most {best.params['ball']} in full knowledge, and on {known[1]} above one pre-trained plainly: "
        f"{helps}. On rows as they are it is right on {clean[0]} instead of "
        f"{clean[1]}.",
        cell=CELL,
        estimates=_remedied(best),
        figures=(figures.bars(bars, name="pretraining-against-evasion"),),
    )
    return resting(found, trained, best, command, ASKED)


def _proven(proof: Trial, command: str) -> Finding:
    e, limit = proof.estimates, proof.params["ball"]
    found = Finding(
        id=f"encoders/evasion/certificate/{proof.method.rpartition('/')[2]}",
        title="What is proven of a classifier above the encoder",
        state="found",
        claim=f"{e['certified'].value:.1%} of the rows are answered rightly with a proof for {limit} by a vote under "
        f"noise, which is right on {e['smoothed_correct'].value:.1%} as they are; the probe without noise on "
        f"{e['correct'].value:.1%}.",
        cell=CELL,
        estimates={
            "rows proven": e["certified"],
            "rows that attacks left right": e["stands"],
            "rows right by the vote": e["smoothed_correct"],
            "rows right by the probe without noise": e["correct"],
        },
        figures=(_curve(proof),),
    )
    return resting(found, [proof], proof, command, ASKED)


def _curve(proof: Trial) -> Figure:
    right, radius = proof.evidence["smoothed_correct"], proof.evidence["radius"]
    most = float(radius[right].max()) if bool(right.any()) else 1.0
    radii = [most * step / 40 for step in range(41)]
    proven = (radii, [stats.share(right & (radius >= r), "proven") for r in radii])
    mark = float(str(proof.params["ball"]).partition(":")[2])
    return figures.security_curve({}, certified=proven, mark=mark, axis="radius, l2", name="evasion-proven")
