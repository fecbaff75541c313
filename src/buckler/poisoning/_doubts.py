"""What is doubted of every attack and every defence of the area."""

from __future__ import annotations

from torch import Tensor

from buckler import stats
from buckler.data import Poisoned
from buckler.kinds import Suspicion
from buckler.threat import Share
from buckler.trial import Check

WORKS, COLLAPSED = 0.5, 0.1
"""An attack below this success leaves nothing to defend; a defence that costs more accuracy than this does harm."""


def works(success: Tensor) -> Check:
    """Whether the attack does what it should to a model without a defence, `success` `(M,)`."""
    share = stats.share(success, "success")
    says = f"Undefended, {share.value:.1%} of triggered test rows are answered as the adversary wants."
    more = "" if share.value >= WORKS else " The attack does not work here, so that nothing is proven of a defence."
    return Check("the attack works", share.value >= WORKS, says + more, share.value)


def harmless(evidence: dict[str, Tensor]) -> Check:
    lost = stats.difference(evidence["accuracy_change"], "accuracy_change") if "accuracy_change" in evidence else None
    value = 0.0 if lost is None else -lost.value
    says = f"The defence costs {100 * value:.1f} points of accuracy."
    more = "" if value <= COLLAPSED else " That is harm, whatever became of the backdoor."
    return Check("the defence is harmless", value <= COLLAPSED, says + more, value)


def not_by_chance(evidence: dict[str, Tensor]) -> Check:
    """Whether a clean model answers the trigger as the adversary wants anyway: then success is no backdoor's."""
    success = stats.share(evidence["control_success"], "control_success")
    good = success.value <= 0.3
    says = f"Without poison {success.value:.1%} of triggered test rows are answered as the adversary wants."
    more = "" if good else " The trigger itself fools a clean model: this is evasion more than a backdoor."
    return Check("a clean model ignores the trigger", good, says + more, success.value)


def of_the_data(touched: Poisoned, share: Share | None) -> tuple[Check, ...]:
    """Whether an attack kept to its share, covers aside, and how much of the class that it poisons is poison."""
    rate, many, all_rows = touched.class_rate, int(touched.rows.sum()), len(touched.y)
    bad = int(touched.poison.sum())
    counted = f"{bad} of {all_rows} rows were poisoned ({bad / all_rows:.1%})"
    if many > bad:
        counted += f", and {many - bad} more were touched as covers ({(many - bad) / all_rows:.1%})"
    within = share is not None and bad <= share.of(all_rows)
    says = f"{many} of {all_rows} rows were touched, {rate:.1%} of those with the label that holds most of them."
    if not touched.survives:
        says += " The trigger does not outlive flips and crops."
    return (
        Check("within the share", within, f"{counted}; the attack was given {share}.", bad / all_rows),
        Check("share of the class", True, says, rate),
    )


def sound(suspicion: Suspicion, many: int, path: str) -> None:
    """A `ValueError` unless there is a finite score and a flag for each of `many` rows."""
    for name, tensor in (("score", suspicion.score), ("flagged", suspicion.flagged)):
        if tensor.shape != (many,):
            raise ValueError(f"{path}: expected {name} ({many},), got {tuple(tensor.shape)}")
    if not bool(suspicion.score.isfinite().all()):
        raise ValueError(f"{path}: expected finite scores, got {int((~suspicion.score.isfinite()).sum())} that are not")
