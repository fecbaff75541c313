"""What copies and guards are worth: measured on known victims, re-computed from evidence, and doubted."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from stolen_worlds import CLASSES, SIDES, net, quick, rows, subject, victim
from torch import Tensor, nn

from buckler.data import as_tensors, split
from buckler.evasion.pgd import pgd
from buckler.kinds import Copy, Defended
from buckler.target import LabelOracle, Oracle, QueryBudgetExceeded
from buckler.theft._door import door, read
from buckler.theft._scene import small
from buckler.theft.copycat import copycat
from buckler.theft.equation_solving import equation_solving
from buckler.theft.evaluate import evaluate
from buckler.theft.jbda import jbda
from buckler.theft.knockoff import knockoff
from buckler.theft.reverse_sigmoid import reverse_sigmoid
from buckler.theft.rounding import rounding
from buckler.theft.watermark import watermark
from buckler.train import fit
from buckler.trial import Trial, load, save

FAST = quick(knockoff)
LIGHT = partial(knockoff, epochs=2)


@pytest.fixture(scope="module")
def trial() -> Trial:
    return evaluate(FAST, subject(), queries=(200, 20, 4000))


def test_copies_are_compared_with_the_victim_with_the_truth_and_with_controls(trial: Trial, tmp_path: Path) -> None:
    assert (trial.status, trial.kind, trial.method) == ("ok", "extract", "theft/knockoff")
    e = trial.estimates
    assert e["fidelity"].value > 0.9
    assert e["fidelity_20"].value < e["fidelity_200"].value == e["fidelity"].value
    assert "fidelity_4000" not in e  # the pool was spent: more budget changes nothing
    assert trial.evidence["asked"].tolist() == [20, 200]
    assert "200 queries" in trial.threat.within
    assert abs(e["victim_accuracy"].value - 0.8) < 0.06
    assert e["accuracy"].value == pytest.approx(float(trial.evidence["copy_correct"].float().mean()))
    assert e["accuracy_ratio"].value == pytest.approx(e["accuracy"].value / e["victim_accuracy"].value)
    assert e["control_fidelity"].value < 0.6
    assert e["fidelity_above_control"].low > 0.2
    # true labels are wrong in a fifth of the rows, the victim's answers never: the thief does better than the honest
    assert e["fidelity"].value > e["fidelity_alone"].value
    assert e["transferred"].value > e["noise_transferred"].value
    save(trial, tmp_path / "trial")
    again = load(tmp_path / "trial")  # every estimate is computed again
    assert again.estimates == e


def test_a_thief_that_has_the_model_from_elsewhere_is_found_out() -> None:
    """It ignores what it is told, so a door that tells it nothing changes nothing."""

    def insider(oracle: LabelOracle, pool: Tensor, *, seed: int = 0) -> Copy:
        oracle(pool[:5])
        return victim()

    trial = evaluate(insider, subject(), queries=(50,))
    assert trial.estimates["fidelity"].value == 1.0
    assert trial.status == "inconclusive"
    assert "another way than by answers" in trial.reason


def test_nobody_is_measured_on_rows_of_the_pool() -> None:
    seen: list[Tensor] = []

    def watched(oracle: LabelOracle, pool: Tensor, *, net: Callable[[], nn.Module], seed: int = 0) -> Copy:
        seen.append(pool)
        return copycat(oracle, pool, net=net, epochs=1)

    whole = subject()
    x, y = as_tensors(whole.test)
    doubled = replace(whole, test=(torch.cat([x, x[:50]]), torch.cat([y, y[:50]])), train=(x, y))
    for pool in ("test", "train", "noise"):
        evaluate(watched, doubled, queries=(30,), pool=pool)
        assert not bool((seen[-1][:, None] == _measured(doubled)[None]).all(2).any())
    assert len(seen[-1]) == 30
    assert seen[-1].min() >= 0


class Watching(nn.Module):
    """The victim, which remembers what it was asked."""

    def __init__(self) -> None:
        super().__init__()
        self.kept: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        self.kept.append(x.clone())
        return victim()(x)


def _measured(of: Any) -> Tensor:
    """The rows that are measured on: half of the test rows, all of which the model is asked about at once."""

    def idle(oracle: LabelOracle, pool: Tensor, *, seed: int = 0) -> Copy:
        return net()

    evaluate(idle, replace(of, model=(model := Watching())), queries=(1,))
    x, _ = as_tensors(split(of.test, 0.5, seed=0)[1])
    assert any(torch.equal(rows, x) for rows in model.kept)
    return x


@pytest.mark.parametrize("queries", [20, 100])
def test_a_thief_that_asks_by_and_by_has_a_control_too(queries: int) -> None:
    """Batches of few rows, often of one class, could not be shuffled: what is answered is from elsewhere."""
    trial = evaluate(partial(FAST, strategy="adaptive"), subject(), queries=(queries,))
    assert trial.status == "ok"
    assert trial.estimates["control_fidelity"].value < 0.6
    assert trial.estimates["fidelity_above_control"].low > 0.2


def test_a_control_hears_nothing_of_what_it_asks_in_however_small_batches() -> None:
    heard: list[float] = []

    def single(oracle: LabelOracle, pool: Tensor, *, seed: int = 0) -> Copy:
        answers = torch.cat([oracle(row) for row in pool[:60].split(1)])
        heard.append(float((answers == victim()(pool[:60]).argmax(1)).float().mean()))
        return net()

    trial = evaluate(single, subject(), queries=(60,))
    assert heard[0] == 1
    assert len(heard) >= 2
    assert max(heard[1:]) < 0.6
    assert trial.evidence["asked"].tolist() == [60]


def test_a_thief_that_begins_with_the_model_and_asks_row_by_row_is_found_out() -> None:
    def insider(oracle: LabelOracle, pool: Tensor, *, seed: int = 0) -> Copy:
        answers = torch.cat([oracle(row) for row in pool[:40].split(1)])
        return fit(victim(), (pool[:40], answers), epochs=1, rate=0.01, seed=seed)

    trial = evaluate(insider, subject(), queries=(50,))
    assert trial.status == "inconclusive"
    assert trial.estimates["control_fidelity"].low > 0.6


def test_one_control_that_agrees_by_luck_accuses_nobody() -> None:
    def lucky(oracle: LabelOracle, pool: Tensor, *, seed: int = 0) -> Copy:
        oracle(pool[:5])
        return victim() if seed == 0 else victim(5)

    trial = evaluate(lucky, subject(), queries=(50,))
    assert trial.status == "ok"
    assert trial.estimates["control_fidelity"].value < 0.6


@pytest.mark.parametrize(("method", "attack"), [(FAST, None), (reverse_sigmoid, FAST)])
def test_a_budget_of_the_subject_s_own_that_ends_leaves_nothing_to_believe(method: Any, attack: Any) -> None:
    oracle = Oracle(victim(), "scores", budget=250)
    given = replace(subject(), model=oracle)
    trial = evaluate(method, given, queries=(100, 200), rows=20, attack=attack)
    assert (trial.status, trial.estimates, trial.evidence) == ("inconclusive", {}, {})
    assert "own budget of queries ended" in trial.reason
    assert trial.cost.queries == oracle.asked <= 250
    with pytest.raises(QueryBudgetExceeded):  # as the thief's own door says of one that does not keep to it
        evaluate(_greedy, subject(), queries=(20,))


def _greedy(oracle: LabelOracle, pool: Tensor, *, seed: int = 0) -> Copy:
    oracle(pool)
    return net()


@pytest.mark.parametrize(("method", "attack"), [(LIGHT, None), (reverse_sigmoid, LIGHT)])
def test_all_that_the_model_answers_is_paid_for(method: Any, attack: Any) -> None:
    """A budget that changes nothing, controls, rows that are measured on, and what examples are tried on."""
    asked: dict[str, Any] = {"queries": (20, 4000), "rows": 100, "attack": attack}
    oracle = Oracle(victim(), "scores")
    assert evaluate(method, replace(subject(), model=oracle), **asked).cost.queries == oracle.asked
    model = Watching()
    trial = evaluate(method, replace(subject(), model=model), **asked)
    assert trial.cost.queries == sum(map(len, model.kept)) > 700


@pytest.mark.parametrize("scale", [torch.nan, 3.0, -1.0])
@pytest.mark.parametrize("method", [FAST, equation_solving, partial(jbda, start=20, rounds=2)])
def test_a_model_that_answers_with_no_probabilities_is_refused(scale: float, method: Any) -> None:
    def answer(x: Tensor) -> Tensor:
        return scale * victim()(x).softmax(1)

    with pytest.raises(ValueError, match="expected scores that are probabilities"):
        evaluate(method, replace(subject(), model=Oracle(answer, "scores")), queries=(50,))


def test_labels_and_networks_that_do_not_fit_the_model_are_one_sentence() -> None:
    def seven(x: Tensor) -> Tensor:
        return torch.full((len(x),), 7)

    given = subject()
    with pytest.raises(ValueError, match="output for each of 8 classes, got one with 3"):
        evaluate(quick(copycat), replace(given, model=Oracle(seven, "labels")), queries=(50,))
    with pytest.raises(ValueError, match="output for each of 3 classes, got one with 5"):
        evaluate(FAST, replace(given, net=lambda: nn.Linear(SIDES, 5)), queries=(50,))
    x, y = as_tensors(given.test)
    odd = replace(given, test=(x, torch.where(torch.arange(len(y)) % 40 == 0, 5, y)))
    for method, attack in ((FAST, None), (rounding, FAST)):
        with pytest.raises(ValueError, match="labels of the model's 3 classes, got 5"):
            evaluate(method, odd, queries=(50,), attack=attack)


@pytest.mark.parametrize("reveals", ["scores", "labels"])
def test_a_network_has_the_classes_of_the_model_not_of_the_rows(reveals: Any) -> None:
    given = subject(noise=0.0)
    x, y = as_tensors(given.test)
    said = (y + 1) % CLASSES  # labels 0 and 1 where the model says 2 and 0
    test = x[said < 2], said[said < 2]
    for method in (LIGHT, partial(LIGHT, strategy="adaptive"), partial(jbda, start=20, rounds=2)):
        hidden = replace(given, test=test, net=None, model=Oracle(victim(), reveals))
        assert evaluate(method, hidden, queries=(30,), rows=50).status == "ok"


@pytest.mark.parametrize("method", [FAST, partial(jbda, rounds=2)])
def test_a_seed_of_63_bits_is_a_seed(method: Any) -> None:
    assert evaluate(method, subject(), queries=(20,), seed=2**63 - 1).status == "ok"


def test_a_thief_hears_no_more_than_is_revealed() -> None:
    heard: list[str] = []

    def watched(oracle: LabelOracle, pool: Tensor, *, net: Callable[[], nn.Module], seed: int = 0) -> Copy:
        heard.append(oracle.reveals)
        return net()

    evaluate(watched, subject(), queries=(30,), reveals="scores")
    assert set(heard) == {"labels"}
    trial = evaluate(FAST, subject(), queries=(60,), reveals="labels")
    assert trial.params["reveals"] == trial.threat.sees == "labels"
    answers = Oracle(victim(), "labels")
    asked = evaluate(FAST, replace(subject(), model=answers), queries=(60,))
    assert asked.params["reveals"] == "labels"
    torch.testing.assert_close(asked.evidence["agreed"], trial.evidence["agreed"])


@pytest.mark.parametrize("reveals", ["top1", "digits2", "top2-digits3"])
def test_answers_with_fewer_classes_and_digits(reveals: str) -> None:
    x = rows(40)
    _, classes, digits = read(reveals)
    for model in (victim(), Oracle(victim(), "scores")):
        scores = door(model, reveals)(x)
        true = victim()(x).softmax(1).detach()
        assert torch.equal(scores.argmax(1), true.argmax(1))
        if digits is not None and classes is None:
            assert float((scores - true).abs().max()) < 2 * 10.0**-digits
        if classes == 1:
            assert bool((scores.sort(1).values[:, 0] - scores.sort(1).values[:, 1]).abs().max() < 1e-5)
    trial = evaluate(FAST, subject(), queries=(100,), reveals=reveals)
    assert trial.status == "ok"
    assert trial.threat.sees == reveals


def test_equations_are_solved_where_the_victim_is_linear() -> None:
    trial = evaluate(equation_solving, subject(), queries=(SIDES + 1, 100))
    assert trial.estimates["fidelity_100"].value > 0.99
    assert trial.estimates["fidelity_7"].value > 0.9
    assert "network" not in trial.threat.within


def test_a_guard_is_measured_with_a_naive_and_with_an_adaptive_thief() -> None:
    trial = evaluate(reverse_sigmoid, subject(), queries=(100,), attack=FAST)
    assert (trial.status, trial.kind) == ("ok", "guard")
    e = trial.estimates
    assert e["scores_moved"].low > 0.1
    assert e["unguarded_brier"].value < e["brier"].value
    assert e["labels_kept"].value > 0.95
    plain = evaluate(partial(copycat, **FAST.keywords), subject(), queries=(100,))
    assert e["fidelity_adaptive"].value == plain.estimates["fidelity"].value  # labels are as they were
    undefended = evaluate(FAST, subject(), queries=(100,))
    assert e["fidelity_undefended"].value == undefended.estimates["fidelity"].value
    assert e["fidelity_change"].value == pytest.approx(e["fidelity"].value - e["fidelity_undefended"].value)


def test_a_guard_that_changes_nothing_changes_nothing() -> None:
    trial = evaluate(partial(reverse_sigmoid, beta=0.0), subject(), queries=(60,), attack=FAST)
    assert abs(trial.estimates["fidelity_change"].value) < 0.02
    assert trial.estimates["scores_moved"].value < 1e-5
    assert trial.checks[0].passed


def test_a_guard_that_spoils_answers_is_said_to() -> None:
    class Spoilt(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return victim()(x).roll(1, 1)

    def spoiling(model: nn.Module) -> Defended:
        return Spoilt()

    trial = evaluate(spoiling, subject(), queries=(60,), attack=FAST)
    assert not trial.checks[0].passed
    assert trial.estimates["accuracy_change"].high < -0.4


def test_what_the_subject_does_not_admit_is_skipped_with_a_reason() -> None:
    assert "give the subject its `train`" in evaluate(FAST, subject(), pool="train").reason
    few = evaluate(FAST, subject(many=30))
    assert (few.status, "halves of the test rows" in few.reason) == ("skipped", True)
    labels = replace(subject(), model=Oracle(victim(), "labels"))
    assert "only labels are revealed" in evaluate(rounding, labels).reason


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        ({"queries": (0, 5)}, "at least one query"),
        ({"queries": ()}, "at least one query"),
        ({"reveals": "top"}, "expected reveals as labels"),
        ({"reveals": ""}, "expected reveals as labels"),
        ({"pool": "web"}, "expected a pool out of test, train, noise, got 'web'"),
        ({"attack": jbda}, "expected no attack here"),
        ({"training_epochs": 3}, "expected no training epochs here"),
    ],
)
def test_what_makes_no_sense_is_one_sentence(asked: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        evaluate(FAST, subject(), **asked)


def test_a_guard_is_tried_on_a_thief() -> None:
    with pytest.raises(ValueError, match="expected an attack that makes a copy, got evasion/pgd, of the kind evade"):
        evaluate(rounding, subject(), queries=(30,), attack=pgd)
    with pytest.raises(ValueError, match="expected no queries here: a method of the kind own"):
        evaluate(watermark, subject(), queries=(30,))


def test_a_copy_that_answers_nothing_is_refused() -> None:
    def broken(oracle: LabelOracle, pool: Tensor, *, seed: int = 0) -> Copy:
        return nn.Flatten(0)

    with pytest.raises(ValueError, match="expected a copy with logits"):
        evaluate(broken, subject(), queries=(30,))


def test_a_thief_who_does_not_know_the_network_has_one_of_its_own() -> None:
    trial = evaluate(partial(jbda, rounds=2, start=50), replace(subject(), net=None), queries=(100,))
    assert trial.status == "ok"
    assert "a small network" in trial.threat.within
    assert trial.estimates["fidelity"].value > 0.7
    assert small(rows(2), CLASSES)()(rows(5)).shape == (5, CLASSES)
    assert small(torch.rand(2, 3, 12, 12), 4)()(torch.rand(5, 3, 12, 12)).shape == (5, 4)


def test_the_seed_decides() -> None:
    first, again, other = (evaluate(FAST, subject(), queries=(40,), seed=seed) for seed in (0, 0, 1))
    assert all(torch.equal(value, again.evidence[name]) for name, value in first.evidence.items())
    assert not torch.equal(first.evidence["agreed"], other.evidence["agreed"])
