"""Two runs side by side."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from buckler import stats
from buckler.compare import compare
from buckler.threat import Threat
from buckler.trial import Trial, save


def trial(robust: list[int], data: str = "d", **changes: object) -> Trial:
    flags = torch.tensor(robust, dtype=torch.bool)
    made = Trial(
        method="evasion/pgd",
        kind="evade",
        params={"steps": 10},
        threat=Threat("model", "input", "linf:0.1", "any wrong label"),
        subject={"name": "s", "model": "m", "data": data},
        seed=0,
        status="ok",
        estimates={"robust_accuracy": stats.share(flags, "robust")},
        evidence={"robust": flags},
    )
    return replace(made, **changes)  # type: ignore[arg-type]


def test_the_same_rows_are_compared_row_by_row(tmp_path: Path) -> None:
    save(trial([1, 1, 0, 0, 0]), tmp_path / "a" / "trials" / "one")
    save(trial([1, 0, 1, 1, 1]), tmp_path / "b" / "trials" / "two")
    (pair,), alone = compare(tmp_path / "a", tmp_path / "b")
    assert alone == []
    assert pair.before.value == 0.4
    assert pair.after.value == 0.8
    assert pair.change is not None
    assert pair.change.value == pytest.approx(0.4)
    assert pair.change.n == 5


def test_other_rows_are_not_paired(tmp_path: Path) -> None:
    save(trial([1, 0]), tmp_path / "a" / "trials" / "one")
    save(trial([1, 0], data="e"), tmp_path / "b" / "trials" / "one")
    (pair,), _ = compare(tmp_path / "a", tmp_path / "b")
    assert pair.change is None


@pytest.mark.parametrize(
    "other",
    [
        trial([1, 0], params={"steps": 20}),
        trial([1, 0], threat=Threat("model", "input", "linf:0.2", "any wrong label")),
        trial([1, 0], status="inconclusive"),
    ],
)
def test_only_equal_threats_are_compared(tmp_path: Path, other: Trial) -> None:
    save(trial([1, 0]), tmp_path / "a" / "trials" / "one")
    save(other, tmp_path / "b" / "trials" / "one")
    pairs, alone = compare(tmp_path / "a", tmp_path / "b")
    assert pairs == []
    assert len(alone) == (1 if other.status != "ok" else 2)
    assert ("inconclusive in" in alone[0]) == (other.status != "ok")


def test_a_folder_that_is_no_run_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="expected a run folder"):
        compare(tmp_path, tmp_path)


def test_damaged_and_unfinished_trials_are_passed_over(tmp_path: Path) -> None:
    for name in ("one", "two.damaged-abc", ".three"):
        save(trial([1, 0]), tmp_path / "a" / "trials" / name)
    save(trial([1, 1], params={}), tmp_path / "a" / "trials" / "four")
    (tmp_path / "a" / "trials" / "four" / "trial.json").write_text("{")
    pairs, alone = compare(tmp_path / "a", tmp_path / "a")
    assert len(pairs) == 1
    assert len(alone) == 2
    assert all("a damaged trial is left out (four: not a readable trial" in text for text in alone)


def test_different_subjects_are_said_to_be_so(tmp_path: Path) -> None:
    save(trial([1, 0]), tmp_path / "a" / "trials" / "one")
    save(trial([1, 0], subject={"name": "other", "model": "m", "data": "d"}), tmp_path / "b" / "trials" / "one")
    (tmp_path / "a" / "trials" / "notes.txt").write_text("a stray file")
    pairs, alone = compare(tmp_path / "a", tmp_path / "b")
    assert len(pairs) == 1
    assert ["The subjects differ" in text for text in alone] == [True]
