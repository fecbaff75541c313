"""What poisoned pre-training data does to an encoder: to chosen inputs, by a trigger, or to all that it is good for.

Each of the three has a finding, by the attack that weighs most; another pre-training on the same poisoned rows is a
defence, and so is a vote, of which it is said what is proven. Judged is what a probe answers as wanted beyond what one
above a clean encoder of the same making does; of few inputs an exact interval says how little they tell. What is lost
downstream is judged where labels are few.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from buckler import stats
from buckler.encoders._judged_bagged import of_bagged
from buckler.encoders._poisoned import IGNORED
from buckler.encoders._problems import PROBLEMS, Row
from buckler.encoders._problems import problem as problem_of
from buckler.findings import Cell, Figure, Finding, NotMeasured, Rule, Severity, Verdicts, because, severity
from buckler.judging import changed, named, resting
from buckler.report import figures, tiles
from buckler.stats import Estimate
from buckler.trial import Trial

ASKED = ("rows", "train_rows", "encoder_steps", "share", "pretraining")
"""What `evaluate` may be asked beside a method's own knobs, as flags."""
RULES = {"poisoning": "encoders.poisoned", "backdoor": "encoders.poisoned", "depletion": "encoders.ruined"}
IDS = {"poisoning": "encoders/poisoning", "backdoor": "encoders/backdoor/data", "depletion": "encoders/depletion/data"}
TITLES = {
    "poisoning": "What poisoned pre-training makes of chosen inputs",
    "backdoor": "Whether a backdoor comes in with the pre-training data",
    "depletion": "What poisoned pre-training leaves of the encoder",
}
CELLS: Mapping[str, Cell] = {
    "poisoning": PROBLEMS["poisoning"][1],
    "backdoor": ("training", "integrity"),
    "depletion": ("training", "availability"),
}
USUAL = "encoders/simclr"
SHOWN = {
    "beyond": "answered as wanted beyond a clean encoder",
    "success": "answered as wanted, a probe of all labels",
    "control_success": "the same above a clean encoder",
    "few_success": "answered as wanted, probes of few labels",
    "control_few_success": "the same of few labels above a clean encoder",
    "few_lost": "accuracy lost, probes of few labels",
    "few_correct": "accuracy of probes of few labels",
    "control_few_correct": "accuracy of probes of few labels above a clean encoder",
    "correct": "accuracy of a probe of all labels",
    "control_correct": "accuracy of a probe of all labels above a clean encoder",
}


def of_poisoning(trials: Sequence[Trial], table: Mapping[str, Rule], command: str) -> tuple[Verdicts, tuple[Row, ...]]:
    """A finding and a row for each of the three problems that were measured, what is proven, and what could not be."""
    votes = [t for t in trials if t.kind == "bag"]
    broken = tuple(f"{t.method}: {t.reason}" for t in votes if t.status == "failed" and t.evidence)
    missing = tuple(NotMeasured(named(t), t.reason, CELLS[_problem(t)]) for t in trials if t.status != "ok")
    votes = [t for t in votes if t.status == "ok"]
    findings, rows = [of_bagged(t, command) for t in votes], list[Row]()
    for problem in IDS:
        mine = [t for t in trials if t.status == "ok" and t.kind != "bag" and _problem(t) == problem]
        attacks = [t for t in mine if t.params["pretraining"] == USUAL]
        defended = [t for t in mine if t not in attacks]
        if attacks or defended:
            found, row = _judged(problem, attacks or defended, defended if attacks else (), table, command)
            findings.append(found)
            rows.append(_proven(row, votes) if problem == "poisoning" and not row.defence else row)
    return Verdicts(tuple(findings), missing, broken), tuple(rows)


def _proven(row: Row, votes: Sequence[Trial]) -> Row:
    """The row with the vote by which most is proven, where no other defence was tried; what it leaves is a bound. It
    says so where networks that learn from no row are better than what is proven."""
    best = min(votes, key=lambda t: t.estimates["open"].value, default=None)
    if best is None:
        return row
    defence = f"{named(best)}: inputs without a proof for {best.params['share']} of the rows"
    if best.estimates["few_worth"].high < 0:
        defence += ", though not to pre-train is better"
    return row._replace(defence=defence, left=best.estimates["open"], costs=best.estimates["few_kept"])


def _problem(trial: Trial) -> str:
    """Which of the problems an attack is of, as a trial says it also where nothing was measured, unless it failed."""
    if trial.status == "failed" or trial.kind == "bag":
        return problem_of(trial)
    wants = trial.threat.wants
    return "poisoning" if wants.startswith("chosen") else "backdoor" if wants.startswith("a trigger") else "depletion"


def _effect(trial: Trial) -> Estimate:
    return trial.estimates[_name(trial)]


def _judged(
    problem: str, attacks: Sequence[Trial], defended: Sequence[Trial], table: Mapping[str, Rule], command: str
) -> tuple[Finding, Row]:
    worst = max(attacks, key=lambda t: _effect(t).value)
    effect, rule = _effect(worst), RULES[problem]
    level = severity(rule, effect, table)
    doubt = next((c.says for c in worst.checks if c.name == IGNORED and not c.passed), "")
    if level > Severity.info and effect.low <= 0:
        doubt = f"{effect.n} inputs do not tell what the poison does from chance."
    state = "not measured" if doubt else "found" if level > Severity.info else "clear"
    tried = [t for t in defended if _same(t, worst)]
    best = min(tried, key=lambda t: _effect(t).value, default=None)
    helps = best is not None and state == "found" and _effect(best).value < effect.value
    found = Finding(
        id=IDS[problem],
        title=TITLES[problem],
        state=state,
        severity=level if state == "found" else Severity.info,
        because="" if doubt else because(rule, effect, table, of=SHOWN[_name(worst)]),
        claim=_claim(worst)
        + "".join(f" {_did(t)}" for t in tried)
        + (f" This decides nothing. {doubt}" if doubt else ""),
        cell=CELLS[problem],
        estimates={SHOWN[name]: worst.estimates[name] for name in SHOWN if name in worst.estimates},
        figures=(*_pictures(worst), *_bars(problem, [*attacks, *tried])),
        remedy="Keep the source of every row, and pre-train on rows of sources that you trust."
        if state == "found"
        else "",
        remedy_methods=("encoders/local_crops",) if helps and best is not None and "local" in _trainer(best) else (),
        remedied={SHOWN[_name(worst)]: _effect(best)} if helps and best is not None else {},
    )
    e = worst.estimates
    row = Row(
        problem,
        named(worst).removeprefix("encoders/"),
        SHOWN[_name(worst)],
        effect,
        e["control_few_correct"],
        e["few_correct"],
        "" if best is None else _trainer(best),
        None if best is None else _effect(best),
        None if best is None else _costs(best, worst),
        IDS[problem],
    )
    return resting(found, [*attacks, *tried], worst, command, ASKED), row


def _name(trial: Trial) -> str:
    return "few_lost" if _problem(trial) == "depletion" else "beyond"


def _claim(trial: Trial) -> str:
    e = trial.estimates
    touched = float(trial.evidence["touched"].float().mean())
    accuracy = (
        f"probes of few labels are right on {e['few_correct'].value:.1%} of test rows above it, and on "
        f"{e['control_few_correct'].value:.1%} above a clean one."
    )
    begin = f"When {named(trial)} touches {touched:.1%} of the rows that the encoder learns from, "
    if "success" not in e:
        return begin + accuracy
    inputs = (
        "inputs with its trigger" if _problem(trial) == "backdoor" else f"the {e['success'].n} inputs that it chose"
    )
    return (
        f"{begin}a probe above it answers {e['success'].value:.1%} of {inputs} as it wants, and "
        f"{e['control_success'].value:.1%} above a clean encoder; probes of few labels "
        f"{e['few_success'].value:.1%} and {e['control_few_success'].value:.1%}. Otherwise {accuracy}"
    )


def _trainer(trial: Trial) -> str:
    """How the encoder was pre-trained, in words."""
    asked = trial.params["pretraining"]
    if not isinstance(asked, dict):
        return str(asked).removeprefix("encoders/")
    knobs = {str(key): value for key, value in asked.items() if key != "method"}  # pyright: ignore[reportUnknownVariableType]
    own = ", ".join(f"{key} {value}" for key, value in knobs.items())
    return f"{str(asked['method']).removeprefix('encoders/')} ({own})"  # pyright: ignore[reportUnknownArgumentType]


def _same(trial: Trial, worst: Trial) -> bool:
    """Whether a defence was tried against this very attack."""
    return (trial.method, changed(trial), trial.params["share"]) == (
        worst.method,
        changed(worst),
        worst.params["share"],
    )


def _did(trial: Trial) -> str:
    e = trial.estimates
    left = f"{e['success'].value:.1%} as wanted, " if "success" in e else ""
    return f"Pre-trained by {_trainer(trial)}: {left}{e['few_correct'].value:.1%} right."


def _costs(best: Trial, worst: Trial) -> Estimate | None:
    """What the other pre-training costs where nothing is poisoned, on the same rows."""
    with_it, without = (t.evidence["control_few_correct"] for t in (best, worst))
    return stats.mean(with_it - without, "control_few_correct") if with_it.shape == without.shape else None


def _bars(problem: str, trials: Sequence[Trial]) -> tuple[Figure, ...]:
    key = "few_correct" if problem == "depletion" else "success"
    bars = {f"{named(t).removeprefix('encoders/')}, {_trainer(t)}": t.estimates[key] for t in trials}
    bars["clean encoder"] = trials[0].estimates[f"control_{key}"]
    return (figures.bars(bars, axis=SHOWN[key], name=f"poisoned-{problem}"),)


def _pictures(trial: Trial) -> tuple[Figure, ...]:
    """Poisoned rows as they were and as they are, and attacked inputs."""
    e, many = trial.evidence, len(trial.evidence["poison_after"])
    shown, captions = [e["poison_before"], e["poison_after"]], [*["row"] * many, *["poisoned"] * many]
    if "attacked" in e:
        shown.append(e["attacked"])
        captions += [f"wanted: {int(label)}" for label in e["attacked_wanted"]]
    says = "Rows of the pre-training data, the same rows poisoned, and inputs of which the adversary wants something."
    alt = f"{many} rows, the same {many} rows after {trial.method}, and {len(captions) - 2 * many} attacked inputs."
    return (
        tiles.gallery(torch.cat(shown), captions, caption=says, alt=alt, name=f"{_problem(trial)}-rows", columns=many),
    )
