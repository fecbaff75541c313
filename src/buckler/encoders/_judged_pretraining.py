"""What encoders that were pre-trained here are good for: the baseline that every attack and defence is measured by."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from buckler.encoders._problems import Row
from buckler.findings import Cell, Finding, NotMeasured, Rule, Verdicts
from buckler.judging import named, resting
from buckler.report import figures
from buckler.trial import Trial

TRAINING: Cell = ("training", "availability")
ASKED = ("rows", "train_rows", "encoder_steps", "training_epochs")
"""What `evaluate` may be asked beside a method's own knobs, as flags."""
SHOWN = {
    "correct": "accuracy of a linear probe",
    "nearest_correct": "accuracy by nearest neighbours",
    "few_correct": "accuracy of probes with ten labels of each class",
    "named_correct": "accuracy by the names of the classes alone",
    "untrained_correct": "accuracy of a linear probe above the network untrained",
    "untrained_few_correct": "the same with ten labels of each class",
    "taught_correct": "accuracy of the network taught with all labels",
}


def of_pretraining(
    trials: Sequence[Trial], table: Mapping[str, Rule], command: str
) -> tuple[Verdicts, tuple[Row, ...]]:
    """One finding on all that was pre-trained, and what could not be."""
    del table
    good = [t for t in trials if t.status == "ok"]
    missing = tuple(NotMeasured(named(t), t.reason, TRAINING) for t in trials if t.status != "ok")
    if not good:
        return Verdicts((), missing), ()
    best = max(good, key=lambda t: t.estimates["few_correct"].value)
    shown = {name: best.estimates[name] for name in SHOWN if name in best.estimates}
    others = {name: e for name, e in best.estimates.items() if name.endswith("_correct") and name not in SHOWN}
    found = Finding(
        id="encoders/pretraining",
        title="What pre-training without labels is worth",
        state="found",
        claim=f"A linear probe above the encoder that {named(best)} makes is right on {shown['correct'].value:.1%} of "
        f"test rows; with ten labels of each class {shown['few_correct'].value:.1%}, and "
        f"{shown['untrained_few_correct'].value:.1%} above the same network untrained.",
        cell=TRAINING,
        estimates={SHOWN[name]: e for name, e in shown.items()}
        | {f"accuracy of a linear probe on {name.removesuffix('_correct')}": e for name, e in others.items()},
        figures=(
            figures.bars({named(t).removeprefix("encoders/"): t.estimates["few_correct"] for t in good}, name="probes"),
        ),
    )
    return Verdicts((resting(found, good, best, command, ASKED),), missing), ()
