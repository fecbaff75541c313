"""Pair poisoning: what is changed and what is not; and its evaluation, with a control that must stay quiet."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest
import torch

from buckler.data import Rows
from buckler.encoders.evaluate import evaluate
from buckler.encoders.judge import judge
from buckler.encoders.pair_poisoning import pair_poisoning
from buckler.findings import rules
from buckler.subject import Subject
from buckler.threat import Share


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


def test_without_rows_to_learn_from_it_is_skipped(subject: Subject) -> None:
    trial = evaluate(pair_poisoning, replace(subject, train=None))
    assert trial.status == "skipped"
