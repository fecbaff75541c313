"""What trials of reconstruction say: are inputs rebuilt from the features that are stored, or sent, in their place."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch

from buckler.encoders._blurred import GUARDS, SAID, best
from buckler.encoders._problems import PROBLEMS, Row
from buckler.findings import Figure, Finding, NotMeasured, Rule, Severity, Verdicts, because, severity
from buckler.judging import named, resting
from buckler.report import tiles
from buckler.stats import Estimate
from buckler.trial import Trial

TITLE, CELL = PROBLEMS["reconstruction"]
RULE = "encoders.inputs_rebuilt"
ASKED = ("rows", "train_rows", "encoder_steps", "training_epochs")
"""What `evaluate` may be asked beside a method's own knobs, as flags."""


def of_reconstruction(
    trials: Sequence[Trial], table: Mapping[str, Rule], command: str
) -> tuple[Verdicts, tuple[Row, ...]]:
    """The finding, and what could not be measured."""
    missing = tuple(NotMeasured(named(t), t.reason, CELL) for t in trials if t.status != "ok")
    good = [t for t in trials if t.status == "ok"]
    if not good:
        return Verdicts((), missing), ()
    worst = max(good, key=lambda t: (t.estimates["gain"].low > 0, t.estimates["rebuilt"].low))
    return Verdicts((_finding(worst, good, table, command),), missing), (_row(worst),)


def _finding(worst: Trial, trials: Sequence[Trial], table: Mapping[str, Rule], command: str) -> Finding:
    e = worst.estimates
    level, above = severity(RULE, e["rebuilt"], table), e["gain"].low > 0
    state = "found" if level > Severity.info and above else "clear" if level == Severity.info else "not measured"
    least = best(worst, "rebuilt")
    return resting(
        Finding(
            id="encoders/reconstruction",
            title=TITLE,
            state=state,
            severity=level if state == "found" else Severity.info,
            because="" if state == "not measured" else because(RULE, e["rebuilt"], table, of="inputs rebuilt"),
            claim=_claim(worst) + (" This decides nothing: there are too few rows." if state == "not measured" else ""),
            cell=CELL,
            estimates=_shown(worst, trials),
            figures=tuple(_side_by_side(worst)),
            remedy=_remedy(worst, least) if state == "found" else "",
            remedy_methods=(GUARDS[least],) if state == "found" and _helps(worst, least) else (),
            remedied={"inputs rebuilt": e[f"{least}_rebuilt"], "change of accuracy": e[f"{least}_price"]}
            if state == "found" and _helps(worst, least)
            else {},
        ),
        trials,
        worst,
        command,
        ASKED,
    )


def _claim(trial: Trial) -> str:
    e = trial.estimates
    words = (
        f"From their features alone {named(trial)} rebuilds {e['rebuilt'].value:.0%} of inputs so that they are nearer "
        f"to what is rebuilt than all other rows are (the mean image of their class: {e['mean_rebuilt'].value:.0%}, "
        f"pictures of other rows: {e['shuffled_rebuilt'].value:.0%}); the median PSNR is {e['psnr'].value:.1f} dB and "
        f"the median SSIM {e['ssim'].value:.2f}."
    )
    if "recognised" in e:
        words += (
            f" A network that learnt from other rows gives {e['recognised'].value:.0%} of the pictures the label of "
            f"the input ({e['shuffled_recognised'].value:.0%} if they are of other rows)."
        )
    if "untrained_rebuilt" in e:
        words += f" From the features of the same network untrained it rebuilds {e['untrained_rebuilt'].value:.0%}."
    return words


def _shown(worst: Trial, trials: Sequence[Trial]) -> dict[str, Estimate]:
    names = {
        "rebuilt": "inputs rebuilt",
        "gain": "inputs rebuilt beyond the controls",
        "recognised": "pictures recognised",
        "psnr": "median PSNR, dB",
        "ssim": "median SSIM",
        "mean_psnr": "median PSNR of the class's mean image, dB",
        "mean_ssim": "median SSIM of the class's mean image",
        "mean_rebuilt": "inputs rebuilt, the class's mean image",
        "shuffled_rebuilt": "inputs rebuilt, pictures of other rows",
        "untrained_rebuilt": "inputs rebuilt, features of the untrained network",
        **{f"{guard}_rebuilt": f"inputs rebuilt, {says}" for guard, says in SAID.items()},
        **{f"{guard}_price": f"change of accuracy, {says}" for guard, says in SAID.items()},
    }
    shown = {title: worst.estimates[name] for name, title in names.items() if name in worst.estimates}
    return shown | {f"inputs rebuilt, {named(t)}": t.estimates["rebuilt"] for t in trials if t is not worst}


def _helps(trial: Trial, guard: str) -> bool:
    """Whether so much less is rebuilt through the guard that the intervals do not meet."""
    return bool(guard) and trial.estimates[f"{guard}_rebuilt"].high < trial.estimates["rebuilt"].low


def _remedy(trial: Trial, guard: str) -> str:
    says = "Keep features as you keep the inputs: encrypted, and shown to nobody who may not see those. "
    if not guard:
        return says + "Of features that can only be asked for no guard was tried."
    left, price = trial.estimates[f"{guard}_rebuilt"], trial.estimates[f"{guard}_price"]
    if not _helps(trial, guard):
        return says + f"Guards were tried and do not help: with {SAID[guard]}, {left.value:.0%} are rebuilt."
    return says + (
        f"Where they are handed out, {SAID[guard]} leaves {left.value:.0%} rebuilt by the same method, told of it, and "
        f"changes the accuracy of a linear probe by {100 * price.value:+.1f} points."
    )


def _row(trial: Trial) -> Row:
    e, guard = trial.estimates, best(trial, "rebuilt")
    return Row(
        "reconstruction",
        named(trial),
        "inputs rebuilt",
        e["rebuilt"],
        e["correct"],
        defence=SAID.get(guard, ""),
        left=e.get(f"{guard}_rebuilt"),
        costs=e.get(f"{guard}_price"),
    )


def _side_by_side(trial: Trial) -> Iterable[Figure]:
    """Inputs above what was rebuilt of them, by whom the features are of, and behind guards."""
    lines = {"": "rebuilt", "untrained_": "untrained", "noisy_": "noisy", "top_": "top", "mean_": "class mean"}
    lines = {key: words for key, words in lines.items() if f"{key}picture" in trial.evidence}
    true, label = trial.evidence["true"], trial.evidence["label"]
    captions = [f"{int(label[at])}" for at in range(len(true))]
    yield tiles.gallery(
        torch.cat([true, *(trial.evidence[f"{key}picture"] for key in lines)]),
        captions + [words for words in lines.values() for _ in range(len(true))],
        caption="Inputs and their labels, and what was rebuilt of them from features: of the encoder, of the same "
        "network untrained, behind guards that the method was told of; last the mean image of the class.",
        alt=f"{len(true)} inputs in a line, and below them what was rebuilt: {', '.join(lines.values())}.",
        name="rebuilt",
        columns=len(true),
    )
