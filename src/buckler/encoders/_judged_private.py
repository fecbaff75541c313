"""What pre-training with noise promises, what it leaves of an inference, and what it costs."""

from __future__ import annotations

from collections.abc import Sequence

from buckler.encoders._problems import PROBLEMS, Row
from buckler.findings import Finding, NotMeasured, Verdicts
from buckler.judging import named, resting
from buckler.report import figures
from buckler.trial import Trial

ID, AUC, CHANCE = "encoders/membership/private", "area under the curve", 0.5
PLAIN, USELESS = "plain pre-training", ", no better than untrained"
ASKED = ("rows", "train_rows", "encoder_steps", "pretraining")
"""What `evaluate` may be asked beside a method's own knobs, as flags."""
SHOWN = {
    "auc": f"{AUC} of EncoderMI",
    "plain_auc": f"{AUC} of EncoderMI, {PLAIN}",
    **{
        f"{start}{key}correct": f"accuracy of {probes}{whose}"
        for key, probes in {"few_": "probes of few labels", "": "a linear probe"}.items()
        for start, whose in {
            "": "",
            "plain_": f", {PLAIN}",
            "untrained_": ", before it learnt",
        }.items()
    },
}


def of_private(trials: Sequence[Trial], command: str) -> tuple[Verdicts, Row | None]:
    """One finding on the private encoder that is worth most, and what it is as a defence against the same inference."""
    cell = PROBLEMS["membership"][1]
    good = [t for t in trials if t.status == "ok"]
    missing = tuple(NotMeasured(named(t), t.reason, cell) for t in trials if t.status != "ok")
    if not good:
        return Verdicts((), missing), None
    best = max(good, key=lambda t: t.estimates["few_correct"].value)
    e = best.estimates
    found = Finding(
        id=ID,
        title="What private pre-training costs",
        state="found",
        claim=_claim(best),
        cell=cell,
        estimates={says: e[name] for name, says in SHOWN.items()},
        figures=(
            figures.bars(
                {
                    "before it learnt": e["untrained_few_correct"],
                    **{_short(t): t.estimates["few_correct"] for t in good},
                    PLAIN: e["plain_few_correct"],
                },
                axis="accuracy of probes of few labels",
                name="private-encoders",
            ),
        ),
    )
    row = Row(
        "membership",
        "encoder_mi",
        AUC,
        e["plain_auc"],
        before=e["plain_few_correct"],
        defence=_short(best) + ("" if _learnt(best) else USELESS),
        left=e["auc"],
        costs=e["few_correct_plain_change"],
        finding=ID,
    )
    return Verdicts((resting(found, good, best, command, ASKED),), missing), row


def _learnt(trial: Trial) -> bool:
    return trial.estimates["few_correct_untrained_change"].low > 0


def _short(trial: Trial) -> str:
    return f"{trial.method.removeprefix('encoders/')} at epsilon {trial.params['epsilon']}"


def _claim(trial: Trial) -> str:
    e = trial.estimates
    cost, gain, plain = e["few_correct_plain_change"], e["few_correct_untrained_change"], e["plain_auc"]
    learnt = "" if _learnt(trial) else ", so nothing was surely learnt: more rows, or a greater epsilon, are needed"
    weak = "" if plain.low > CHANCE else " It tells nothing there either, so this does not show what noise does."
    delta, other = trial.params["promised_delta"], trial.params["pretraining"]
    other = other if isinstance(other, str) else "the other pre-training"
    return (
        f"{named(trial)} promises epsilon {trial.params['epsilon']} at a delta of {delta:.2g} for one row added or "
        f"removed. Probes of few labels above its encoder are right on {e['few_correct'].value:.1%} of test rows: "
        f"{100 * cost.value:+.1f} points beside {other} on the same rows, {100 * gain.value:+.1f} beside the same "
        f"network before it learnt{learnt}. EncoderMI, its encoders made alike, ranks a row learnt from above another "
        f"with probability {e['auc'].value:.2f}, and after {other} with {plain.value:.2f} (chance: 0.5).{weak}"
    )
