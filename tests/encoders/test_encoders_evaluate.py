"""What an evaluation of pre-training says, what it refuses, and what trials share."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from buckler.catalog import cards, find
from buckler.data import Rows
from buckler.encoders._scene import halved
from buckler.encoders.evaluate import evaluate
from buckler.encoders.simclr import simclr
from buckler.kinds import Encoder
from buckler.method import describe
from buckler.subject import Subject
from buckler.train import started
from buckler.trial import Trial, load, save

PRETRAININGS = [card.path for card in cards("encoders") if card.kind == "pretrain"]


def lazy(data: Rows, *, net: Any, epochs: float = 1, batch: int = 128, seed: int = 0) -> Encoder:
    """A pre-training that does nothing."""
    del data, epochs
    return started(net, seed).eval()


def blind(data: Rows, *, net: Any, epochs: float = 1, batch: int = 128, seed: int = 0) -> Encoder:
    """A pre-training that forgets everything: all inputs become one point."""
    made = started(net, seed).eval()
    return nn.Sequential(made, Zero())


class Zero(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return 0 * x


@pytest.fixture(scope="module")
def trial(subject: Subject) -> Trial:
    return evaluate(simclr, subject, encoder_steps=150, rows=600)


def test_an_encoder_is_worth_more_than_its_network_untrained(trial: Trial, tmp_path: Path) -> None:
    assert (trial.status, trial.kind, trial.method) == ("ok", "pretrain", "encoders/simclr")
    e = trial.estimates
    assert e["gain"].low > 0
    assert e["gain"].value == pytest.approx(e["few_correct"].value - e["untrained_few_correct"].value)
    assert e["correct"].value > 0.75
    assert e["correct"].value > e["few_correct"].value > 0.6
    assert {"pairs_correct", "taught_correct", "nearest_correct", "untrained_nearest_correct"} <= set(e)
    assert trial.params["encoder_steps"] == 150
    assert "epochs" not in trial.params
    save(trial, tmp_path / "trial")
    assert load(tmp_path / "trial").estimates == e, "every estimate is computed again"


def test_what_learnt_nothing_is_no_evidence(subject: Subject) -> None:
    found = evaluate(lazy, subject, encoder_steps=10)
    assert found.status == "inconclusive"
    assert "untrained" in found.reason
    assert not found.checks[0].passed


def test_an_encoder_that_collapsed_is_one_sentence(subject: Subject) -> None:
    with pytest.raises(ValueError, match="got one point for all .* the encoder collapsed"):
        evaluate(blind, subject, encoder_steps=10)


def test_the_seed_decides_and_nothing_is_left_behind(subject: Subject) -> None:
    state = torch.random.get_rng_state()
    short = partial(evaluate, simclr, replace(subject, net=None), encoder_steps=2, rows=100)
    one, again, other = short(), short(), short(seed=1)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(one.evidence[name], again.evidence[name]) for name in one.evidence)
    assert any(not torch.equal(one.evidence[name], other.evidence[name]) for name in one.evidence)


def test_trials_share_an_encoder_and_a_damaged_one_is_made_anew(subject: Subject, tmp_path: Path) -> None:
    calls = list[int]()

    def counted(data: Rows, *, net: Any, epochs: float = 1, batch: int = 128, seed: int = 0) -> Encoder:
        calls.append(len(data[1]))
        return lazy(data, net=net, seed=seed)

    ask = partial(evaluate, counted, replace(subject, net=None), encoder_steps=3, rows=60, keep=str(tmp_path))
    first = ask()
    assert ask().estimates == first.estimates
    assert calls == [150]
    (kept,) = tmp_path.iterdir()
    kept.write_bytes(kept.read_bytes()[:100])
    assert ask().estimates == first.estimates
    assert calls == [150, 150]
    kept.write_bytes(kept.read_bytes()[:-400] + bytes(400))  # whole, but with other weights
    assert ask().estimates == first.estimates
    assert calls == [150] * 3
    ask(encoder_steps=4)
    ask(seed=1)
    assert calls == [150] * 5


@pytest.mark.parametrize(
    ("without", "says"),
    [({"train": None}, "give the subject"), ({"body": None, "net": None}, "give the subject")],
)
def test_a_subject_without_what_is_needed_is_skipped(subject: Subject, without: dict[str, None], says: str) -> None:
    found = evaluate(simclr, replace(subject, **without))
    assert found.status == "skipped"
    assert says in found.reason


def test_what_a_kind_makes_nothing_of_is_refused(subject: Subject) -> None:
    with pytest.raises(ValueError, match="expected no share here"):
        evaluate(simclr, subject, share="1%")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="expected for pretraining a method of pretrain"):
        evaluate(find("encoders/universal"), subject, pretraining=find("evasion/pgd"))
    for path in ("encoders/simclr", "encoders/pair_poisoning"):
        with pytest.raises(ValueError, match=f"{path} pre-trains the encoder itself"):
            evaluate(find(path), subject, pretraining=find("encoders/moco"))
    with pytest.raises(ValueError, match="expected epochs of 0 or more"):
        evaluate(simclr, subject, training_epochs=-1)
    with pytest.raises(ValueError, match="expected a method that this area runs"):
        evaluate(find("poisoning/abl"), subject)


def test_halves_share_no_row() -> None:
    x = torch.arange(11.0)[:, None]
    one, other = halved((x, torch.arange(11)))
    assert sorted([*one[1].tolist(), *other[1].tolist()]) == list(range(11))
    assert torch.equal(one[0][:, 0].long(), one[1])


@pytest.mark.parametrize("path", PRETRAININGS)
def test_every_pre_training_makes_an_encoder_and_leaves_the_rows_alone(path: str, learnt: Rows) -> None:
    x, y = (255 * learnt[0][:40]).byte(), learnt[1][:40]
    before = x.clone()
    knobs = describe(find(path)).knobs
    few = {"epochs": 1, "batch": 16}
    assert {"net", "epochs", "batch", "seed"} <= set(knobs), "what an evaluation fills in"
    state = torch.random.get_rng_state()
    made = find(path)((x, y), net=lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 12)), seed=3, **few)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert torch.equal(x, before)
    assert not any(part.training for part in made.modules())
    assert made(learnt[0][:5]).shape == (5, 12)
    assert made(learnt[0][:5]).isfinite().all()
