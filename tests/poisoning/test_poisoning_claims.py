"""What an attack says of itself is compared with what it did, and a defence gets no credit where it did nothing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import pytest
import torch
from problems import pixel, stamp, subject
from torch import Tensor, nn

from buckler.data import Poisoned, Rows
from buckler.kinds import Anomaly, Suspicion
from buckler.poisoning._touch import always
from buckler.poisoning.evaluate import evaluate
from buckler.threat import Share
from buckler.trial import Trial


def named(trial: Trial) -> dict[str, bool]:
    return {check.name: check.passed for check in trial.checks}


def altered(change: Callable[[Poisoned], Poisoned]) -> Callable[..., Poisoned]:
    """`pixel`, whose answer is changed before it is given."""

    def attack(data: Rows, *, share: Share, seed: int = 0) -> Poisoned:
        return change(pixel(data, share=share, seed=seed))

    return attack


def in_place(data: Rows, *, share: Share, seed: int = 0) -> Poisoned:
    """Stamps every row where it lies, and owns up to one."""
    del share, seed
    x, y = data
    x[:, :, -1, -1] = 1.0
    return Poisoned(x, y, torch.arange(len(y)) == 1, y, stamp, always(0))


FIRST = torch.arange(300) == 1
LIARS = {
    "changes only in the 1 rows": altered(lambda p: replace(p, rows=FIRST)),
    "rows that it says it touched, got": in_place,
    "as original the labels": altered(lambda p: replace(p, original=p.y)),
    r"x \(300, 1, 8, 8\) of torch.float32, got \(299,": altered(lambda p: replace(p, x=p.x[1:])),
    "of torch.float32, got .* of torch.float64": altered(lambda p: replace(p, x=p.x.double())),
    "rows .* of torch.bool, got .* of torch.int64": altered(lambda p: replace(p, rows=p.rows.long())),
    "covers that were touched and keep their labels": altered(lambda p: replace(p, covers=p.rows)),
}


@pytest.mark.parametrize("says", LIARS)
def test_an_attack_that_did_something_else_than_it_says_is_refused(says: str) -> None:
    with pytest.raises(ValueError, match=f"expected .*{says}"):
        evaluate(LIARS[says], subject(), share=Share(0.1), rows=30)


def test_more_than_the_share_is_said() -> None:
    def greedy(data: Rows, *, share: Share, seed: int = 0) -> Poisoned:
        return pixel(data, share=Share(2 * share.rate), seed=seed)

    assert not named(evaluate(greedy, subject(), share=Share(0.1), rows=30))["within the share"]
    assert named(evaluate(pixel, subject(), share=Share(0.1), rows=30))["within the share"]


def test_covers_are_named_beside_the_share() -> None:
    def covered(data: Rows, *, share: Share, seed: int = 0) -> Poisoned:
        made = pixel(data, share=Share(3 * share.rate), seed=seed)
        covers = made.rows & (made.rows.cumsum(0) > share.of(len(made.y)))
        return replace(made, y=torch.where(covers, made.original, made.y), covers=covers)

    trial = evaluate(covered, subject(), share=Share(0.1), rows=30)
    (check,) = (check for check in trial.checks if check.name == "within the share")
    assert check.passed
    assert check.says.startswith("30 of 300 rows were poisoned (10.0%), and 60 more were touched as covers (20.0%)")
    assert trial.threat.within == "10% of the training rows, 20.0% more as covers"
    assert [int(trial.evidence[name].sum()) for name in ("touched", "poisoned")] == [90, 30]


def flags(model: nn.Module, clean: Rows, *, classes: tuple[int, ...] = (0,)) -> Anomaly:
    """An inspector that has made up its mind."""
    del model, clean
    flagged = torch.isin(torch.arange(3), torch.tensor(classes))
    return Anomaly(flagged.float(), flagged)


def idle(data: Rows, *, share: Share, seed: int = 0) -> Poisoned:
    """An attack that marks rows and does nothing to them, so that nothing is learnt."""
    x, y = data
    del seed
    return Poisoned(x, y, torch.arange(len(y)) < share.of(len(y)), y, stamp, always(0))


def doubtful(data: Rows, *, share: Share, seed: int = 0) -> Poisoned:
    """`pixel`, with another three carriers whose labels are false and not the target either."""
    made = pixel(data, share=share, seed=seed)
    false = (made.original == 1) & ~made.rows
    false &= false.cumsum(0) <= 3
    x = torch.where(false[:, None, None, None], stamp(made.x), made.x)
    return replace(made, x=x, y=torch.where(false, 2, made.y), rows=made.rows | false)


def wrong(data: Rows, *, share: Share, seed: int = 0) -> Poisoned:
    """Labels of class 0 made 1: an attack on accuracy, without a trigger."""
    x, y = data
    del seed
    rows = (y == 0) & ((y == 0).cumsum(0) <= share.of(len(y)))
    return Poisoned(x, torch.where(rows, 1, y), rows, y)


def hunted(data: Rows, *, share: Share, prey: Rows | None = None, seed: int = 0) -> Poisoned:
    """`wrong`, with prey that is wanted as class 1."""
    assert prey is not None
    return replace(wrong(data, share=share, seed=seed), prey=(prey[0], torch.ones_like(prey[1])))


@pytest.mark.parametrize(
    ("attack", "wanted"),
    [(pixel, [0]), (doubtful, [0]), (wrong, []), (hunted, [1])],
)
def test_what_an_inspector_should_find_is_what_the_adversary_wants(attack, wanted: list[int]) -> None:
    trial = evaluate(partial(flags, classes=(0, 1)), subject(), attack=attack, share=Share(0.1), rows=100)
    found, alarms = trial.estimates["found"], trial.estimates["false_alarms"]
    assert found.n == len(wanted)
    assert alarms.n == 3 - len(wanted)
    assert round(alarms.value * alarms.n) == 2 - len(wanted)


def look(model: nn.Module, data: Rows) -> Suspicion:
    del model
    score: Tensor = data[0][:, 0, -1, -1]
    return Suspicion(score, score > 0.9)


@pytest.mark.parametrize("method", [flags, look])
def test_a_detector_gets_no_credit_from_an_attack_that_does_not_work(method) -> None:
    whole = subject()
    works, does_not = (evaluate(method, whole, attack=attack, share=Share(0.1), rows=100) for attack in (pixel, idle))
    assert works.status == "ok"
    assert works.estimates["attack_success"].value > 0.9
    assert set(named(works)) == {"the attack works", "within the share", "share of the class"}
    assert does_not.status == "inconclusive"
    assert "does not work" in does_not.reason
    assert evaluate(method, whole, rows=50).checks == ()


def test_test_rows_of_the_target_class_only_are_one_sentence() -> None:
    whole = subject()
    x, y = whole.test
    with pytest.raises(ValueError, match="expected test rows of another class than the target, got none"):
        evaluate(pixel, replace(whole, test=(x[y == 0], y[y == 0])), share=Share(0.1), rows=30)
