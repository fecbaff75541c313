"""What answers tell of how a model was made: which traits, how surely, and what less detail in answers leaves of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from buckler import stats
from buckler.findings import Cell, Finding, NotMeasured, Rule, Severity, Verdicts, because, severity
from buckler.judging import resting
from buckler.report import figures
from buckler.stats import Estimate
from buckler.theft._guessed import LESS, chance
from buckler.theft._making import WAYS
from buckler.trial import Trial

RULE = "theft.making_told"
QUERIES: Cell = ("queries", "confidentiality")
ASKED = ("queries", "reveals", "pool", "models", "train_rows", "training_epochs")
"""What `evaluate` may be asked beside a method's own knobs, as flags."""
SHOWN = {
    "beyond": "traits told beyond chance",
    "told_right": "traits told",
    "told_wider": "traits told of wider models than any learnt from",
    "told_top": "traits told by the leading score in two digits",
    "told_labels": "traits told by labels alone",
    "told_shuffled": "traits told by a metamodel of shuffled traits",
    "accuracy": "accuracy of the models guessed at",
}
SAID = {"top": "the leading score in two digits", "labels": "labels alone"}
REMEDIES = {"top": ("theft/top_k", "theft/rounding"), "labels": ()}


def of_making(trials: Sequence[Trial], table: Mapping[str, Rule], command: str) -> Verdicts:
    """The finding, and what could not be measured."""
    good = [t for t in trials if t.status == "ok"]
    missing = [NotMeasured(t.method, t.reason, QUERIES) for t in trials if t.status != "ok"]
    return Verdicts(tuple([_finding(good, table, command)] if good else []), tuple(missing))


def _finding(trials: Sequence[Trial], table: Mapping[str, Rule], command: str) -> Finding:
    worst = max(trials, key=lambda t: t.estimates["beyond"].low)
    e, traits = worst.estimates, _traits(worst)
    level, told = severity(RULE, e["beyond"], table), _surely(worst)
    undecided = level > Severity.info and (e["beyond"].low <= 0 or not told)
    state = "not measured" if undecided else "found" if level > Severity.info else "clear"
    remedy, methods, remedied = _remedy(worst) if state == "found" else ("", (), {})
    found = Finding(
        id="theft/hyperparameters",
        title="What the answers tell of how the model was made",
        state=state,
        severity=level if state == "found" else Severity.info,
        because="" if undecided else because(RULE, e["beyond"], table, of=SHOWN["beyond"]),
        claim=_claim(worst, told)
        + (f" This decides nothing: {e['beyond'].n} models are too few." if undecided else ""),
        cell=QUERIES,
        estimates={title: e[name] for name, title in SHOWN.items() if name in e},
        figures=(
            figures.bars(
                {f"{t} (chance {chance(worst.evidence, t):.0%})": e[f"right_{t}"] for t in traits},
                axis="models of which it is told",
                name="making",
            ),
        ),
        remedy=remedy,
        remedy_methods=methods,
        remedied=remedied,
        tables={"making.csv": _table(trials)},
    )
    return resting(found, trials, worst, command, ASKED)


def _traits(trial: Trial) -> list[str]:
    return [t for t in WAYS if f"right_{t}" in trial.estimates]


def _surely(trial: Trial) -> list[str]:
    """The traits that are told more often than by chance, at the level of one estimate shared between all."""
    traits = _traits(trial)
    level = 1 - (1 - stats.LEVEL) / len(traits)
    share = {t: stats.share(trial.evidence[f"right_{t}"], t, level) for t in traits}
    return [t for t in traits if share[t].low > chance(trial.evidence, t)]


def _claim(trial: Trial, told: Sequence[str]) -> str:
    e, traits = trial.estimates, _traits(trial)
    each = [f"{t} ({e[f'right_{t}'].value:.0%}, chance {chance(trial.evidence, t):.0%})" for t in told]
    rest = ", ".join(t for t in traits if t not in told)
    words = f"With {trial.threat.within}, {e['told_right'].value:.0%} of the traits of unknown models are told"
    words += f" ({e['told_wider'].value:.0%} of models wider than any learnt from): surely beyond chance "
    words += f"{', '.join(each) or 'none'}{f'; not {rest}' if rest and told else ''}."
    return f"{words} {_own(trial, told)}"


def _own(trial: Trial, told: Sequence[str]) -> str:
    """What is guessed of the subject's own model, and how often such a guess is right."""
    if not told:
        return "So nothing is said of the model itself."
    said: list[str] = []
    for t in told:
        best = int(trial.evidence[f"guess_{t}"].argmax())
        seen = f"seen_{t}" in trial.evidence
        right = seen and int(trial.evidence[f"seen_{t}"][0]) == best
        said.append(f"{t} {WAYS[t][best]}{'' if not seen else ', which is so' if right else ', which is wrong'}")
    return f"Of the model itself it is guessed: {'; '.join(said)}."


def _remedy(trial: Trial) -> tuple[str, tuple[str, ...], dict[str, Estimate]]:
    """The least detail that was tried and helps, with what it leaves; else what is left to do."""
    e = trial.estimates
    tried = [name for name in LESS if f"change_{name}" in e]
    helps = [name for name in tried if e[f"change_{name}"].high < 0]
    if not helps:
        says = f"Less detail in answers was tried and hides nothing ({', '.join(SAID[n] for n in tried)}). " * bool(
            tried
        )
        return says + "Do not count on the making of a model to be secret; limit what one account may ask.", (), {}
    best = min(helps, key=lambda name: e[f"told_{name}"].value)
    left, change = e[f"told_{best}"], e[f"change_{best}"]
    says = (
        f"Answer with {SAID[best]}: {left.value:.0%} of the traits are told then, {e['told_right'].value:.0%} before."
    )
    chances = e["told_right"].value - e["beyond"].value
    says += f" Chance is {chances:.0%}, so do not count on the rest to be secret." if left.low > chances else ""
    return says, REMEDIES[best], {"traits told": left, "change of traits told": change}


def _table(trials: Sequence[Trial]) -> str:
    """How often every trait is told, by what is revealed and of which models, as CSV."""
    lines = ["reveals,trait,models,told,low,high,chance\n"]
    groups = {"right": "as wide", "wider": "wider", **{name: f"as wide, by {words}" for name, words in SAID.items()}}
    for trial in trials:
        for t in _traits(trial):
            for name, words in groups.items():
                if f"{name}_{t}" in trial.evidence:
                    e, common = stats.share(trial.evidence[f"{name}_{t}"], t), chance(trial.evidence, t)
                    numbers = f"{e.value:.6g},{e.low:.6g},{e.high:.6g},{common:.6g}"
                    lines.append(f'{trial.params["reveals"]},{t},"{words}",{numbers}\n')
    return "".join(lines)
