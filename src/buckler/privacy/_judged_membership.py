"""What trials of membership inference say: how well can the rows that a model learnt from be told.

Two questions are asked, and each has a finding: of the subject's own model, by what needs no training, and of the
training, by shadow models. A finding rests on the attack that weighs most, and on what it finds where few false alarms
are allowed before what it finds on average: an adversary who names a few rows for sure does harm that an average hides.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from buckler.findings import Cell, Figure, Finding, NotMeasured, Rule, Severity, Verdicts, because, severity
from buckler.judging import changed, resting, said
from buckler.privacy._judged_guarded import ASKED, behind
from buckler.privacy._measure import CONTROL
from buckler.report import figures, tiles
from buckler.stats import Estimate
from buckler.trial import Trial

RULES: Mapping[str, tuple[str, float, str]] = {
    "privacy.members_found": ("found_at_one_percent", 0.01, "members found at 1% false alarms"),
    "privacy.membership": ("auc", 0.5, "area under the curve"),
}
"""Every rule with the estimate that it reads, what that is by chance, and its name for a reader."""
SHOWN = {
    "found_at_one_percent": "members found at 1% false alarms",
    "found_at_one_permille": "members found at 0.1% false alarms",
    "auc": "area under the curve",
    "balanced_accuracy": "balanced accuracy",
    "right_among_flagged": "members among flagged rows, 1 row in 10 a member, 1% false alarms",
    "accuracy": "accuracy on rows not learnt from",
    "member_accuracy": "accuracy on members",
}
MODEL: Cell = ("queries", "confidentiality")
TRAINING: Cell = ("training", "confidentiality")


def of_membership(trials: Sequence[Trial], table: Mapping[str, Rule], command: str) -> Verdicts:
    """A finding of the model and one of the training, and what could not be measured."""
    missing = [NotMeasured(t.method, t.reason, _cell(t)) for t in trials if t.status != "ok"]
    good = [t for t in trials if t.status == "ok"]
    plain, guarded = ([t for t in good if ("defence" in t.params) is through] for through in (False, True))
    own, retrained = ([t for t in plain if ("models" in t.params) is shadowed] for shadowed in (False, True))
    findings = [_finding(some, table, command) for some in (own, retrained) if some]
    findings += [behind(guarded, command)] if guarded else []
    return Verdicts(tuple(findings), tuple(missing))


def _cell(trial: Trial) -> Cell:
    return TRAINING if "models" in trial.params else MODEL


def _finding(trials: Sequence[Trial], table: Mapping[str, Rule], command: str) -> Finding:
    worst, rule = max(((t, r) for t in trials for r in RULES), key=lambda pair: _weight(*pair, table))
    key, chance, name = RULES[rule]
    effect, level = worst.estimates[key], severity(rule, worst.estimates[key], table)
    undecided = level > Severity.info and effect.low <= chance
    state = "not measured" if undecided else "found" if level > Severity.info else "clear"
    whole = "models" in worst.params
    found = Finding(
        id="privacy/training" if whole else "privacy/model",
        title="Which rows the training gives away" if whole else "Which rows the model gives away",
        state=state,
        severity=level if state == "found" else Severity.info,
        because="" if undecided else because(rule, effect, table, of=name),
        claim=_claim(worst, whole=whole) + (_too_few(effect, name) if undecided else ""),
        cell=_cell(worst),
        estimates={title: worst.estimates[name] for name, title in SHOWN.items()},
        figures=(_curves(trials), *(_exposed(worst) if state == "found" else ())),
        remedy=REMEDY if state == "found" else "",
        remedy_methods=("privacy/dp_sgd",) if state == "found" else (),
        tables={f"exposed-{'training' if whole else 'model'}.csv": _table(worst)} if state == "found" else {},
    )
    return resting(found, trials, worst, command, ASKED)


REMEDY = (
    "Train less long, with more data, augmentation or weight decay, so that members are not answered better than other "
    "rows; look at the exposed rows, and leave out those that nobody needs to learn; answer with labels, or fewer "
    "digits, where scores are not needed. Only training with differential privacy bounds what any attack can find."
)


def _weight(trial: Trial, rule: str, table: Mapping[str, Rule]) -> tuple[bool, Severity, float]:
    """What decides comes first, then what is graver, then what is further above chance."""
    key, chance, _ = RULES[rule]
    effect = trial.estimates[key]
    level = severity(rule, effect, table)
    return effect.low > chance, level, effect.value / chance


def _too_few(effect: Estimate, name: str) -> str:
    return f" This decides nothing: {effect.n} rows are too few to tell {name} from chance."


def _claim(trial: Trial, *, whole: bool) -> str:
    e, name = trial.estimates, trial.method.rpartition("/")[2].replace("_", " ")
    who = (
        f"With {trial.params['models']} models trained on rows of the same kind, {name}"
        if whole
        else f"By nothing but the model's answers, {name}"
    )
    doubt = next((c for c in trial.checks if c.name == CONTROL and not c.passed), None)
    return (
        f"{who} finds {e['found_at_one_percent'].value:.1%} of the rows learnt from where 1% of other rows are flagged "
        f"(chance: 1%), and {e['found_at_one_permille'].value:.1%} where 0.1% are; the area under the curve is "
        f"{e['auc'].value:.2f} (chance: 0.5)." + (f" {doubt.says}" if doubt else "")
    )


def _curves(trials: Sequence[Trial]) -> Figure:
    """The curve of every trial, labelled by its method; a method that is there twice, by what it was asked as well."""
    names = [t.method.rpartition("/")[2].replace("_", " ") for t in trials]
    more = [", ".join(f"{key} {said(value)}".replace("_", " ") for key, value in changed(t).items()) for t in trials]
    labels = [
        f"{name}, {own}" if own and names.count(name) > 1 else name for name, own in zip(names, more, strict=True)
    ]
    return figures.roc({label: t.evidence["ranked"] for label, t in zip(labels, trials, strict=True)})


def _exposed(worst: Trial) -> Iterable[Figure]:
    pictures, at = worst.evidence["exposed"], worst.evidence["exposed_at"]
    if pictures.ndim == 4 and len(pictures):
        rows, labels = worst.evidence["row"][at], worst.evidence["label"][at]
        captions = [f"{int(label)}: row {int(row)}" for label, row in zip(labels, rows, strict=True)]
        yield tiles.gallery(
            pictures,
            captions,
            caption="The training rows that are told most surely, the surest first, with label and row.",
            alt=f"{len(captions)} exposed training rows, label and row: {'; '.join(captions)}.",
            name="exposed",
            columns=5,
        )


def _table(trial: Trial) -> str:
    """The members that stand out of all but one in a hundred other rows, or else the most exposed ones."""
    score, member = trial.evidence["ranked"][:, 0], trial.evidence["ranked"][:, 1] == 1
    others = score[~member]
    alarms = {int(i): float((others >= score[i]).float().mean()) for i in member.nonzero().squeeze(1)}
    order = sorted(alarms, key=lambda i: -float(score[i]))
    chosen = [i for i in order if alarms[i] <= 0.01] or order[:10]
    rows, labels = trial.evidence["row"], trial.evidence["label"]
    lines = [f"{int(rows[i])},{int(labels[i])},{float(score[i]):.6g},{alarms[i]:.6g}\n" for i in chosen]
    return "row,label,score,false_alarms\n" + "".join(lines)
