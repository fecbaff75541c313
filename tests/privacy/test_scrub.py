"""SCRUB: rows look as if never seen, on average; and only what forgets is believed, row by row as well."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from membership_worlds import net, noise, normed, subject, untaught
from torch import Tensor, nn

from buckler import stats
from buckler.data import Rows
from buckler.findings import Severity, rules
from buckler.kinds import Forgotten
from buckler.privacy._unlearning import EACH, EXACT, GONE
from buckler.privacy.evaluate import evaluate
from buckler.privacy.judge import judge
from buckler.privacy.loss_threshold import loss_threshold
from buckler.privacy.scrub import _divergence, scrub
from buckler.subject import Subject
from buckler.target import Oracle
from buckler.train import fit, started
from buckler.trial import Trial, load, save

COMMAND = "buckler run {method} --demo digits --seed 0"
ROWS, PUBLIC = noise(320), noise(160, seed=1)
FORGET = torch.arange(80)
scrubbed = partial(scrub, net=net, public=PUBLIC, epochs=40, batch=32)


def area(model: nn.Module, inside: Rows, outside: Rows) -> float:
    scores = [loss_threshold(Oracle(model, "scores"), *rows) for rows in (inside, outside)]
    return float(stats.placements(*scores).mean())


def test_forgotten_rows_look_like_rows_never_seen_and_the_rest_is_remembered() -> None:
    made = scrubbed(ROWS, FORGET, rounds=15)
    gone, rest = (ROWS[0][:80], ROWS[1][:80]), (ROWS[0][80:], ROWS[1][80:])
    unseen = noise(320, seed=2)
    assert area(made.before, gone, unseen) > 0.85
    assert 0.45 < area(made.after, gone, unseen) < 0.72
    assert area(made.after, rest, unseen) > area(made.after, gone, unseen) + 0.08


def test_work_is_counted() -> None:
    made = scrubbed(ROWS, FORGET, rounds=4, disobeyed=2, epochs=2)
    learnt, asked = 2 * 80 + 4 * 240, 320 + 9 * 80 + 160
    assert made.redone == pytest.approx((learnt + asked / 3) / (2 * 240))
    assert scrubbed(ROWS, FORGET[:0], epochs=1).redone == 0


def test_nothing_to_forget_changes_nothing() -> None:
    made = scrubbed(ROWS, FORGET[:0], epochs=2)
    assert all(torch.equal(a, b) for a, b in zip(made.before.parameters(), made.after.parameters(), strict=True))


def test_before_is_plain_training_and_the_seed_alone_decides() -> None:
    x, y = (ROWS[0] * 255).to(torch.uint8), ROWS[1].clone()
    kept, state = x.clone(), torch.random.get_rng_state()
    first, again, other = (
        scrub((x, y), FORGET, net=normed, public=PUBLIC, epochs=3, rounds=2, disobeyed=1, seed=seed)
        for seed in (5, 5, 6)
    )
    plain = fit(started(normed, 5), (x, y), epochs=3, batch=64, rate=0.1, seed=5)
    assert all(torch.equal(a, b) for a, b in zip(first.before.parameters(), plain.parameters(), strict=True))
    weights = [torch.cat([p.flatten() for p in one.after.parameters()]) for one in (first, again, other)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
    assert torch.equal(torch.random.get_rng_state(), state)
    assert torch.equal(x, kept)
    assert not first.after.training


@pytest.mark.parametrize("heat", [1.0, 4.0])
def test_the_divergence_is_its_sum(heat: float) -> None:
    draw = torch.Generator().manual_seed(0)
    said, told = (torch.randn(5, 4, generator=draw) for _ in range(2))
    p, q = ((one / heat).softmax(1) for one in (told, said))
    torch.testing.assert_close(_divergence(said, told, heat), heat**2 * (p * (p / q).log()).sum(1))


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(ValueError, match="expected numbers of rows between 0 and 319"):
        scrubbed(ROWS, torch.tensor([320]))
    with pytest.raises(ValueError, match="expected whole numbers of rows to forget"):
        scrubbed(ROWS, torch.zeros(320, dtype=torch.bool))
    with pytest.raises(ValueError, match="expected rows that stay"):
        scrubbed(ROWS, torch.arange(320))
    with pytest.raises(ValueError, match="expected a round or more"):
        scrubbed(ROWS, FORGET, rounds=2, disobeyed=3)


# ------------------------------------------------------------------------------------------------ what is believed


def not_at_all(data: Rows, forget: Tensor, *, net: Callable[[], nn.Module], seed: int = 0) -> Forgotten:
    """Says that it forgot: answers are other ones, and in the same order."""
    model = fit(started(net, seed), data, epochs=30, batch=64, rate=0.1)
    after = copy.deepcopy(model)
    last = list(after.parameters())[-2:]
    for weight in last:
        weight.data.mul_(0.9)
    return Forgotten(model, after, 0.0)


def taught_otherwise(
    data: Rows, forget: Tensor, *, net: Callable[[], nn.Module], keep: bool, seed: int = 0
) -> Forgotten:
    """Learns wrong labels of the rows to be forgotten; or, where the rest is not kept, nothing at all."""
    x, y = data
    wrong = y.clone()
    wrong[forget] = (wrong[forget] + 1) % 4
    before = fit(started(net, seed), data, epochs=40, batch=64, rate=0.1)
    return Forgotten(before, fit(started(net, seed), (x, wrong), epochs=40 if keep else 0, batch=64, rate=0.1), 1.0)


def given() -> Subject:
    return subject(untaught, 480, net=net)


def checked(trial: Trial, name: str) -> bool:
    (check,) = [check for check in trial.checks if check.name == name]
    return check.passed


def test_what_forgets_is_told_from_what_only_says_so_and_both_are_tried_row_by_row(tmp_path: Path) -> None:
    some, none = (evaluate(way, given(), models=4) for way in (partial(scrub, epochs=30), not_at_all))
    for trial in (some, none):
        assert trial.status == "ok"
        assert not checked(trial, EXACT)
        assert trial.params["models"] == 4
        assert trial.estimates["before_each_auc"].low > 0.8
    assert some.estimates["auc"].value < none.estimates["auc"].value
    assert some.estimates["each_auc"].value < none.estimates["each_auc"].value - 0.1
    assert not checked(none, GONE)
    assert not checked(none, EACH)
    save(some, tmp_path / "trial")
    assert load(tmp_path / "trial").estimates.keys() == some.estimates.keys()
    (finding,) = judge([some, none], {}, rules(), COMMAND).findings
    assert (finding.id, finding.severity) == ("privacy/unlearning", Severity.high)
    assert "Nothing is guaranteed" in finding.claim
    assert f"{some.estimates['anew_auc'].value:.2f}" in finding.claim


def test_forgetting_too_much_shows_too() -> None:
    """Forgotten rows that are answered worse than rows never seen are told from them as well."""
    trial = evaluate(partial(taught_otherwise, keep=True), given(), models=4)
    assert trial.estimates["auc"].high < 0.5
    assert not checked(trial, GONE)


def test_what_forgets_everything_is_seen_to() -> None:
    trial = evaluate(partial(taught_otherwise, keep=False), given(), models=4)
    assert checked(trial, GONE)
    assert trial.estimates["kept_accuracy"].high < trial.estimates["anew_kept_accuracy"].low
