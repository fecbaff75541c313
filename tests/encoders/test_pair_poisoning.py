"""Pair poisoning: what is changed and what is not; and its evaluation, with a control that must stay quiet."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import cast

import pytest
import torch

from buckler import nets
from buckler.data import Rows
from buckler.encoders._judged_pairs import of_pairs
from buckler.encoders._paired import alike
from buckler.encoders._pairs import Pair
from buckler.encoders.clip import clip
from buckler.encoders.evaluate import evaluate
from buckler.encoders.judge import judge
from buckler.encoders.pair_poisoning import pair_poisoning
from buckler.findings import rules
from buckler.stats import recompute
from buckler.subject import Subject
from buckler.threat import Share

NET = partial(nets.encoder, width=8, stride=1)


def test_a_backdoor_stamps_other_classes_and_captions_the_target(learnt: Rows) -> None:
    made = pair_poisoning(learnt, share=Share(0.1), target=3, size=2)
    assert int(made.rows.sum()) == 30
    assert bool((made.original[made.rows] != 3).all())
    assert bool((made.y[made.rows] == 3).all())
    changed = (made.x != learnt[0]).flatten(1).nonzero().T
    assert bool(made.rows[changed[0]].all())
    assert set(changed[1].tolist()) <= {54, 55, 62, 63}
    assert made.trigger is not None
    assert made.x[made.rows].equal(made.trigger(learnt[0][made.rows]))


def test_prey_takes_the_place_of_images(learnt: Rows, unseen: Rows) -> None:
    prey = unseen[0][:3], torch.tensor([1, 2, 3])
    made = pair_poisoning(learnt, share=Share(0.02), goal="targeted", prey=prey)
    assert int(made.rows.sum()) == 6
    for image, label in zip(*prey, strict=True):
        mine = (made.x == image).flatten(1).all(1)
        assert int(mine.sum()) == 2
        assert bool((made.y[mine] == label).all())
    assert made.x[~made.rows].equal(learnt[0][~made.rows])


def test_what_makes_no_sense_is_refused(learnt: Rows, unseen: Rows) -> None:
    with pytest.raises(ValueError, match="patch of 9"):
        pair_poisoning(learnt, share=Share(0.1), size=9)
    with pytest.raises(ValueError, match="got none"):
        pair_poisoning(learnt, share=Share(0.1), goal="targeted")
    with pytest.raises(ValueError, match="got 4"):
        pair_poisoning(learnt, share=Share(0.01), goal="targeted", prey=(unseen[0][:4], unseen[1][:4]))
    with pytest.raises(ValueError, match="lower share"):
        pair_poisoning(learnt, share=Share(1.0))


def test_poison_is_found_clean_pairs_stay_quiet_and_sifting_helps(subject: Subject) -> None:
    trial = evaluate(partial(pair_poisoning, target=3, size=4), subject, share=Share(0.12), rows=300, encoder_steps=70)
    known = trial.estimates
    assert trial.status == "ok"
    assert known["clean_hit"].high < 0.2
    assert known["beyond"].low > 0.2
    assert known["left"].high < known["beyond"].low
    assert known["suspicion"].low > 0.5
    verdict = judge([trial], {}, rules(), "run {method}")
    (found,) = [finding for finding in verdict.findings if finding.id == "encoders/backdoor/pairs"]
    assert found.state == "found"
    assert found.estimates["named as wanted beyond clean pairs"] == known["beyond"]
    assert sorted(map(repr, found.estimates.values())) == sorted(map(repr, known.values())), "none hides another"


def test_stopping_early_keeps_hunted_inputs_from_being_learnt(subject: Subject) -> None:
    method = partial(pair_poisoning, goal="targeted")
    trial = evaluate(method, subject, share=Share(0.2), rows=300, encoder_steps=100)
    known = trial.estimates
    assert known["stopped_hit"].value < known["hit"].value - 0.2
    assert known["stopped_correct"].low > 0.3, "it has learnt: chance is 0.1"
    verdict, (row,) = of_pairs([trial], rules(), "run {method}")
    assert (row.problem, row.finding) == ("poisoning", verdict.findings[0].id)
    assert row.effect == known["beyond"]
    assert row.left == min((known["left"], known["stopped_left"]), key=lambda one: one.value)


def test_the_defence_that_leaves_least_is_named_with_its_own_cost(subject: Subject) -> None:
    method = partial(pair_poisoning, goal="targeted")
    trial = evaluate(method, subject, rows=60, encoder_steps=1, share=Share(0.2))
    assert trial.evidence["stopped_hit"].equal(trial.evidence["hit"]), "one step cannot be made fewer"
    for best, costs, said in (("left", "cost", "leaving out the 15%"), ("stopped_left", "stopped_cost", "after 30%")):
        planted = trial.evidence | {"beyond": torch.ones(40).int()}
        planted |= {name: torch.full((40,), int(name != best)) for name in ("left", "stopped_left")}
        found = {name: recompute(e, planted) for name, e in trial.estimates.items()}
        sure = replace(trial, status="ok", reason="", evidence=planted, estimates=found)
        verdict, (row,) = of_pairs([sure], rules(), "run {method}")
        assert said in row.defence
        assert (row.left, row.costs) == (found[best], found[costs])
        assert list(verdict.findings[0].remedied.values()) == [found[best], found[costs]]


def test_what_is_not_sure_is_not_called_clear_and_a_loud_control_decides_nothing(subject: Subject) -> None:
    two = [(x, (y > 4).long()) for x, y in (cast(Rows, subject.train), cast(Rows, subject.test))]
    trial = evaluate(pair_poisoning, replace(subject, train=two[0], test=two[1]), rows=60, encoder_steps=1)
    assert trial.status == "inconclusive", "towers that learnt nothing name each of two classes half of the time"
    for values, state in (([0, 0, 1, 0, 0, 0], "not measured"), ([0] * 200, "clear"), ([1] * 40, "found")):
        planted = {**trial.evidence, "beyond": torch.tensor(values)}
        found = {name: recompute(e, planted) for name, e in trial.estimates.items()}
        sure = replace(trial, status="ok", reason="", evidence=planted, estimates=found)
        (finding,) = of_pairs([sure], rules(), "run {method}")[0].findings
        assert finding.state == state


def test_towers_that_were_kept_are_read_and_not_made_anew(subject: Subject, tmp_path: Path) -> None:
    def made() -> dict[str, int]:
        evaluate(pair_poisoning, subject, rows=60, encoder_steps=1, share=Share(0.1), keep=str(tmp_path))
        return {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()}

    first = made()
    assert first
    assert made() == first


def test_a_label_that_the_trusted_towers_never_saw_is_unlike_every_image(learnt: Rows) -> None:
    x, y = learnt
    pair = cast(Pair, clip((x[y < 9], y[y < 9]), net=NET, epochs=0))
    assert bool((alike(pair, x, y)[y == 9] == -1).all())
    assert bool((alike(pair, x, y)[y < 9] > -1).all())


def test_no_more_inputs_are_hunted_than_pairs_are_the_adversarys(subject: Subject) -> None:
    method = partial(pair_poisoning, goal="targeted")
    for share, many in ((0.007, 5), (0.02, 10)):  # of 150 pairs one, and three: one and two inputs at a time
        trial = evaluate(method, subject, rows=60, encoder_steps=1, share=Share(share))
        assert trial.estimates["hit"].n == many


def test_without_rows_to_learn_from_it_is_skipped(subject: Subject) -> None:
    trial = evaluate(pair_poisoning, replace(subject, train=None))
    assert trial.status == "skipped"
