"""What the judges of all areas share: a trial's own knobs, the command that repeats it, what a finding rests on."""

from __future__ import annotations

import itertools

from buckler.catalog import find
from buckler.findings import Finding
from buckler.flags import hints, read
from buckler.judging import changed, once, repeat, resting, total
from buckler.method import describe
from buckler.threat import Threat
from buckler.trial import Check, Cost, Trial


def made(method: str = "poisoning/dlp", *checks: Check, cost: Cost | None = None, **params: object) -> Trial:
    usual = describe(find(method)).params if not method.startswith("mine") else {}
    return Trial(
        method=method,
        kind="cultivate",
        params={**usual, "rows": 100, **params},
        threat=Threat("data", "training data", "5%", "a label"),
        subject={"name": "m"},
        seed=0,
        status="ok",
        checks=checks,
        cost=cost or Cost(),
        fingerprint=method,
    )


def test_only_knobs_off_their_defaults_are_changed() -> None:
    assert changed(made()) == {}
    assert changed(made(epochs=[1, 0, 2], seed=7, train_rows=9)) == {"epochs": [1, 0, 2]}
    assert changed(made("mine:method", epochs=[1])) == {}
    assert changed(made("poisoning/asd", clean="500 rows")) == {}, "no flag gives a method rows"


def test_the_command_gives_every_knob_back() -> None:
    trial = made(epochs=[1, 0, 2], batch=64, rows=50, share="5%", attack="poisoning/badnets")
    command = repeat("buckler run {method} --seed 3", trial, ("rows", "share", "attack", "train_rows"))
    start = "buckler run poisoning/dlp --seed 3 --rows 50 --share 5% --attack poisoning/badnets "
    assert command.startswith(start)
    given = read(command.removeprefix(start).split(), hints(find("poisoning/dlp")))
    assert given == {"epochs": (1.0, 0.0, 2.0), "batch": 64}


def test_what_was_asked_is_said_once() -> None:
    trial = made("poisoning/unlearnable", share="10%")
    assert repeat("{method}", trial, ("share",)) == "poisoning/unlearnable --share 10%"


def test_a_trial_that_no_command_can_ask_for_has_none() -> None:
    attack = {"method": "poisoning/badnets", "size": 5}
    assert repeat("{method}", made(attack=attack), ("rows", "attack")) == ""


def test_a_doubt_that_failed_anywhere_has_failed() -> None:
    held, failed, other = Check("a", True, "holds"), Check("a", False, "fails"), Check("b", True, "holds")
    for order in itertools.permutations([made("mine:1", held), made("mine:2", failed), made("mine:3", other, held)]):
        assert sorted(once(order), key=lambda check: check.name) == [failed, other]


def test_of_a_doubt_that_holds_the_words_of_the_trial_that_is_shown_are_told() -> None:
    trials = [made("mine:1", Check("a", True, "of 12 rows")), made("mine:2", Check("a", True, "of 60 rows"))]
    finding = Finding(id="a", title="a", state="clear", claim="a", cell=("data", "integrity"))
    assert resting(finding, trials, trials[1], "{method}", ()).checks[0].says == "of 60 rows"


def test_a_finding_rests_on_all_of_its_trials_and_repeats_one() -> None:
    one = made(cost=Cost(1, 2, 3, 4.0, 50))
    two = made("poisoning/abl", cost=Cost(10, 20, 30, 40.0, 5))
    finding = Finding(id="a", title="a", state="clear", claim="a", cell=("data", "integrity"))
    found = resting(finding, [one, two], two, "buckler run {method}", ("rows",))
    assert found.cost == total([one, two]) == Cost(11, 22, 33, 44.0, 50)
    assert found.trials == ("poisoning/dlp", "poisoning/abl")
    assert found.reproduce == "buckler run poisoning/abl --rows 100"
    assert found.threat == two.threat
