"""Findings on image and text towers that learnt from pairs of which some are an adversary's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from buckler.encoders._paired import APART, COUNTED, LEFT_OUT, STOP, TOGETHER
from buckler.encoders._problems import PROBLEMS, Row
from buckler.findings import Finding, NotMeasured, Rule, Severity, Verdicts, because, severity
from buckler.judging import named, resting
from buckler.report import figures
from buckler.trial import Trial

RULE = "encoders.pairs_fooled"
ASKED = ("rows", "train_rows", "encoder_steps", "share")
DIFFERENCES = {
    "beyond": "named as wanted beyond clean pairs",
    "probe_beyond": "answered as wanted by a linear probe, beyond clean pairs",
    "left": "named as wanted beyond clean pairs where unlike pairs were left out",
    "stopped_left": "named as wanted beyond clean pairs by towers that stopped early",
    "gained": "test rows named right more than with clean pairs",
    "cost": "test rows named right more than with clean pairs, where unlike pairs were left out",
    "stopped_cost": "test rows named right more than with clean pairs, by towers that stopped early",
}
DEFENCES = {
    "left": (
        "cost",
        f"leaving out the {LEFT_OUT:.0%} that trusted towers find least alike",
        "Score every pair with image and text towers that learnt from pairs you trust, and leave out those that are "
        "least alike.",
    ),
    "stopped_left": (
        "stopped_cost",
        f"stopping after {STOP:.0%} of the steps",
        "Stop pre-training early: what single pairs say is learnt last. It does not help where many say the same.",
    ),
}
"""By what is left of the effect: what that costs, the defence in a few words, and what to do."""


def of_pairs(trials: Sequence[Trial], table: Mapping[str, Rule], command: str) -> tuple[Verdicts, tuple[Row, ...]]:
    """One finding on backdoors and one on hunted inputs, each on the worst that was measured, and a row on the second:
    in the row on backdoors the subject's own encoder is implanted."""
    findings, missing, rows = list[Finding](), list[NotMeasured](), list[Row]()
    for goal, problem in (("backdoor", "backdoor"), ("targeted", "poisoning")):
        mine, cell = [t for t in trials if t.params["goal"] == goal], PROBLEMS[problem][1]
        good = [t for t in mine if t.status == "ok"]
        missing += [NotMeasured(named(t), t.reason, cell) for t in mine if t.status != "ok"]
        if good:
            worst = max(good, key=lambda t: t.estimates["beyond"].low)
            best = min(DEFENCES, key=lambda left: worst.estimates[left].value)
            name = f"encoders/{problem}/pairs"
            findings.append(resting(_finding(worst, best, name, table), good, worst, command, ASKED))
            if goal == "targeted":
                rows.append(_row(worst, best, name))
    return Verdicts(tuple(findings), tuple(missing)), tuple(rows)


def _row(worst: Trial, best: str, name: str) -> Row:
    costs, defence, _ = DEFENCES[best]
    known = worst.estimates
    return Row(
        "poisoning",
        named(worst).removeprefix("encoders/"),
        DIFFERENCES["beyond"],
        known["beyond"],
        known["clean_correct"],
        known["correct"],
        defence,
        known[best],
        known[costs],
        name,
    )


def _finding(worst: Trial, best: str, name: str, table: Mapping[str, Rule]) -> Finding:
    known = worst.estimates
    effect = known["beyond"]
    level = severity(RULE, effect, table)
    state = "clear" if level == Severity.info else "found" if effect.low > 0 else "not measured"
    helps = state == "found" and known[best].high < effect.low
    hunted = worst.params["goal"] == "targeted"
    what = "hunted inputs" if hunted else "inputs with a small patch"
    among = f", for {TOGETHER} inputs at a time of {known['hit'].n}" if hunted else ""
    costs, _, remedy = DEFENCES[best]
    return Finding(
        id=name,
        title=f"Captions that lie: {what}",
        state=state,
        claim="Towers of images and text were pre-trained on the subject's rows, with captions written for labels. "
        f"With {worst.params['share']} of the pairs an adversary's{among}, {known['hit'].value:.1%} of {what} are "
        f"named as wanted, and {known['clean_hit'].value:.1%} after clean pairs; by a linear probe learnt from clean "
        f"rows {known['probe_hit'].value:.1%}. Leaving out the {LEFT_OUT:.0%} that towers learnt from trusted pairs "
        f"find least alike leaves {known['sifted_hit'].value:.1%}, and stopping after {STOP:.0%} of the steps "
        f"{known['stopped_hit'].value:.1%}."
        + (" This decides nothing: there are too few inputs." if state == "not measured" else ""),
        cell=PROBLEMS[name.split("/")[1]][1],
        estimates={DIFFERENCES[key]: known[key] for key in APART}
        | {says: known[key] for key, says in COUNTED.items()}
        | {"how probably a pair of the adversary's is less alike than another": known["suspicion"]},
        figures=(
            figures.bars(
                {
                    "clean pairs": known["clean_hit"],
                    "poisoned pairs": known["hit"],
                    "the same, by a probe": known["probe_hit"],
                    "unlike pairs left out": known["sifted_hit"],
                    "stopped early": known["stopped_hit"],
                },
                axis=f"{what} named as wanted",
                name="pairs-hunted" if hunted else "pairs-patched",
            ),
        ),
        remedy=remedy
        if helps
        else "Learn from pairs whose source you trust: leaving out those that are least alike and stopping early were "
        "tried, and neither surely helps."
        if state == "found"
        else "",
        remedied={DIFFERENCES[key]: known[key] for key in (best, costs)} if helps else {},
        severity=level if state == "found" else Severity.info,
        because="" if state == "not measured" else because(RULE, effect, table),
    )
