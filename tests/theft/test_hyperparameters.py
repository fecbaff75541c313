"""A model's making: told where answers follow it, at chance where they do not, and only as far as they are shown."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from owned_worlds import blobs, subject
from owned_worlds import taught as trained
from torch import Tensor, nn

from buckler import stats
from buckler.findings import Severity, rules
from buckler.subject import Subject
from buckler.target import Oracle
from buckler.theft import _making
from buckler.theft._guessed import aside, chance
from buckler.theft._making import WAYS, WIDTHS, Metamodel, drawn_ways, made, taught
from buckler.theft.evaluate import evaluate
from buckler.theft.hyperparameters import hyperparameters
from buckler.theft.judge import judge
from buckler.trial import Trial, load, save

X = torch.arange(20.0)[:, None]
FEW = ("smoothing", "batch")


def logits(which: Tensor, gain: float, seed: int, *, steeper: bool = False) -> Tensor:
    """Of models `(S, 20, 3)`: those of the second value answer as others do but more steeply, or lean to class 0."""
    out = torch.randn(len(which), 20, 3, generator=torch.Generator().manual_seed(seed))
    if steeper:
        return out * (1 + gain * which[:, None, None])
    out[..., 0] += gain * which[:, None]
    return out


def shown(answers: Tensor, reveals: str) -> Tensor:
    return answers.softmax(2) if reveals == "scores" else answers.argmax(2)


def told(gain: float, reveals: Any = "scores", *, steeper: bool = False, shuffled: bool = False) -> Tensor:
    """Of which of 100 models the trait is told, by as many of the thief's."""
    which = torch.arange(100) % 2
    learnt = aside("norm", which, 5) if shuffled else which
    known = taught(shown(logits(which, gain, 0, steeper=steeper), reveals), {"norm": learnt}, 3)
    found = list[Tensor]()
    for own in logits(which, gain, 1, steeper=steeper):
        oracle = Oracle(lambda _, own=own: own if reveals == "labels" else own.softmax(1), reveals)
        found.append(hyperparameters(oracle, X, metamodel=known, traits=("norm",))["norm"])
    return torch.stack(found).argmax(1) == which


def by_chance(right: Tensor) -> bool:
    estimate = stats.share(right, "right", 0.999)
    return estimate.low <= 0.5 <= estimate.high


@pytest.mark.parametrize("reveals", ["scores", "labels"])
def test_a_trait_that_moves_answers_is_told(reveals: str) -> None:
    assert float(told(3.0, reveals).double().mean()) > 0.95


@pytest.mark.parametrize("reveals", ["scores", "labels"])
def test_a_trait_that_does_not_show_is_told_by_chance(reveals: str) -> None:
    assert by_chance(told(0.0, reveals))


def test_a_trait_of_the_wrong_models_is_told_by_chance() -> None:
    which = torch.arange(100) % 2
    assert [int((aside("norm", which, 0)[which == value] == 0).sum()) for value in (0, 1)] == [25, 25]
    assert by_chance(told(3.0, shuffled=True))


def test_a_trait_that_shows_in_no_label_is_hidden_by_showing_labels_alone() -> None:
    """How steep answers are changes every score and no label."""
    both = torch.arange(40) % 2
    assert torch.equal(logits(both, 9.0, 3, steeper=True).argmax(2), logits(both, 0.0, 3).argmax(2))
    assert by_chance(told(9.0, "labels", steeper=True))


def test_scores_are_log_probabilities_of_every_value() -> None:
    which = {name: torch.arange(60) % len(values) for name, values in WAYS.items()}
    known = taught(logits(which["norm"], 1.0, 0).softmax(2), which, 3)
    found = hyperparameters(Oracle(lambda _: logits(torch.ones(1), 1.0, 4)[0].softmax(1)), X, metamodel=known)
    assert {name: len(scores) for name, scores in found.items()} == {name: len(v) for name, v in WAYS.items()}
    assert all(float(scores.exp().sum()) == pytest.approx(1) for scores in found.values())


def test_logits_say_what_scores_say() -> None:
    which = torch.arange(60) % 2
    known, own = taught(logits(which, 1.0, 0).softmax(2), {"norm": which}, 3), logits(which, 1.0, 4)[0]
    ask = partial(hyperparameters, metamodel=known, traits=("norm",))
    by_logits, by_scores = ask(Oracle(lambda _: own, "logits"), X), ask(Oracle(lambda _: own.softmax(1)), X)
    torch.testing.assert_close(by_logits["norm"], by_scores["norm"])


def test_what_the_metamodel_did_not_learn_is_refused() -> None:
    known = taught(logits(torch.arange(8) % 2, 1.0, 0).softmax(2), {"norm": torch.arange(8) % 2}, 3)
    ask = partial(hyperparameters, metamodel=known, traits=("norm",))
    with pytest.raises(ValueError, match="expected answers to 20 questions about 3 classes, got"):
        ask(Oracle(lambda _: torch.full((19, 3), 1 / 3)), X[:19])
    with pytest.raises(ValueError, match="expected answers to 20 questions about 3 classes, got"):
        ask(Oracle(lambda _: torch.full((20, 4), 1 / 4)), X)
    with pytest.raises(ValueError, match="expected traits out of norm, got 'family'"):
        hyperparameters(Oracle(lambda _: torch.full((20, 3), 1 / 3)), X, metamodel=known)


def test_scores_of_nothing_and_labels_that_nobody_knows_are_borne() -> None:
    known = Metamodel(20, 3, {})
    assert bool(torch.from_numpy(known.told(torch.zeros(1, 20, 3))).isfinite().all())
    assert float(known.told(torch.full((1, 20), 7)).sum()) == 0


# ------------------------------------------------------------------------------------------------ models


def test_every_value_is_as_frequent_and_traits_are_drawn_apart() -> None:
    ways = drawn_ways(tuple(WAYS), 60, 0)
    assert all(w.bincount().tolist() == [60 // len(WAYS[name])] * len(WAYS[name]) for name, w in ways.items())
    assert len({tuple(w.tolist()) for w in ways.values()}) == len(ways)
    assert torch.equal(ways["norm"], drawn_ways(tuple(WAYS), 60, 0)["norm"])
    assert not torch.equal(ways["norm"], drawn_ways(tuple(WAYS), 60, 1)["norm"])


def test_a_model_is_made_as_it_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, Any] = {}

    def fit(model: nn.Module, data: Any, **how: Any) -> nn.Module:  # what is handed to the one loop
        seen.update(how, rows=len(data[1]))
        return model

    monkeypatch.setattr(_making, "fit", fit)
    rows = blobs(200)
    plain = made({}, rows, 4, WIDTHS, 8, 0)
    assert (seen["rows"], seen["batch"], seen["optimizer"], seen["decay"]) == (50, 32, "sgd", 0.0)
    assert [type(part) for part in plain] == [nn.Flatten, nn.Linear, nn.ReLU, nn.Linear]  # pyright: ignore
    steps = seen["epochs"] * 2  # 50 rows are two batches
    other = {"family": "convolutional", "depth": "two", "activation": "elu", "norm": "batch", "dropout": "0.3"}
    other |= {"optimizer": "adam", "batch": "128", "decay": "0.005", "smoothing": "0.1", "size": "all"}
    full = made(other, rows, 4, WIDTHS, 8, 0)
    assert (seen["rows"], seen["batch"], seen["optimizer"], seen["decay"]) == (200, 128, "adam", 0.005)
    block = [nn.Conv2d, nn.BatchNorm2d, nn.ELU]
    assert [type(part) for part in full] == [*block, *block, nn.Flatten, nn.Dropout, nn.Linear]  # pyright: ignore
    assert full(rows[0]).shape == (200, 4)
    assert seen["epochs"] * 2 == pytest.approx(steps)  # as many steps: size and batch do not show by fewer of them
    assert float(seen["loss"](full, *rows).detach().mean()) > 0


def test_the_seed_decides_and_nothing_else_is_touched() -> None:
    state, rows = torch.random.get_rng_state(), blobs(60)
    first, again, other = (made({"dropout": "0.3"}, rows, 4, WIDTHS, 2, seed) for seed in (3, 3, 4))
    assert torch.equal(state, torch.random.get_rng_state())
    x = blobs(5, seed=9)[0]
    assert torch.equal(first(x), again(x))
    assert not torch.equal(first(x), other(x))


# ------------------------------------------------------------------------------------------------ the evaluation


@pytest.fixture(scope="module")
def trial() -> Trial:
    """Smoothing moves every score; how many rows a batch has hardly shows."""
    method = partial(hyperparameters, traits=FEW)
    return evaluate(method, subject(), queries=(10, 60), models=16, training_epochs=30)


def test_smoothing_is_told_and_labels_alone_hide_it(trial: Trial, tmp_path: Path) -> None:
    e = trial.estimates
    assert (trial.status, trial.kind, trial.threat.wants) == ("ok", "guess", "how the model was made")
    assert e["right_smoothing"].value >= 0.9
    assert e["right_smoothing"].n == 8
    assert float(trial.evidence["wider_smoothing"].double().mean()) >= 0.9
    assert chance(trial.evidence, "smoothing") == 0.5
    assert e["told_shuffled"].value < 0.8
    assert float(trial.evidence["labels_smoothing"].double().mean()) < 0.9
    assert e["change_labels"].value < 0
    assert e["accuracy"].value > 0.8
    assert (trial.cost.queries, trial.cost.forwards, trial.params["queries"]) == (60, 60, [60])
    assert float(trial.evidence["guess_smoothing"].sum()) == pytest.approx(1)
    save(trial, tmp_path / "trial")
    assert load(tmp_path / "trial").estimates == e


def test_the_seed_decides_a_trial() -> None:
    method = partial(hyperparameters, traits=("smoothing",))
    run = partial(evaluate, method, subject(200), queries=(20,), models=8, training_epochs=1)
    first, again, other = run(), run(), run(seed=1)
    assert torch.equal(first.evidence["guess_smoothing"], again.evidence["guess_smoothing"])
    assert not torch.equal(first.evidence["guess_smoothing"], other.evidence["guess_smoothing"])


def test_a_large_seed_is_borne() -> None:
    method = partial(hyperparameters, traits=("smoothing",))
    for seed in (2**62, 2**63 - 2):
        trial = evaluate(method, subject(200), queries=(20,), models=8, training_epochs=1, seed=seed)
        assert (trial.status, trial.seed) == ("ok", seed)


def test_an_oracle_whose_own_budget_ends_decides_nothing() -> None:
    """Twenty questions, and sixteen by which the model is known again."""
    method, plain = partial(hyperparameters, traits=("smoothing",)), subject(200)
    run = partial(evaluate, method, queries=(20,), models=8, training_epochs=1)
    for budget, status, asked in ((35, "inconclusive", 16), (36, "ok", 36)):
        trial = run(replace(plain, model=Oracle(plain.model, "scores", budget)))
        assert (trial.status, trial.cost.queries) == (status, asked)
    (said,) = judged(run(replace(plain, model=Oracle(plain.model, "scores", 35)))).not_measured
    assert "own budget of queries ended" in said.why


def test_a_door_of_labels_is_enough_and_flat_rows_have_no_family() -> None:
    x, y = blobs(200)
    flat = x.flatten(1)
    model = trained(blobs(200), 0, 5)
    oracle = Oracle(lambda rows: model(rows.view(-1, 1, 4, 4)).argmax(1), "labels")
    method = partial(hyperparameters, traits=("family", "norm"))
    found = evaluate(method, Subject("flat", oracle, (flat, y)), queries=(40,), models=8, training_epochs=1)
    assert (found.status, found.threat.sees) == ("ok", "labels")
    assert "right_family" not in found.estimates
    assert "change_labels" not in found.estimates
    assert not [name for name in found.evidence if name.startswith("seen_")]
    (finding,) = judged(found).findings
    assert finding.remedy_methods == ()


def test_what_cannot_be_measured_is_said() -> None:
    plain = subject(200)
    without = replace(plain, train=None)
    trial = evaluate(hyperparameters, replace(without, test=blobs(100)), queries=(20,))
    assert (trial.status, "80 or more" in trial.reason) == ("skipped", True)
    trial = evaluate(hyperparameters, without, queries=(20,), pool="train")
    assert (trial.status, "its `train`" in trial.reason) == ("skipped", True)
    with pytest.raises(ValueError, match="expected 8 models or more"):
        evaluate(hyperparameters, plain, queries=(20,), models=4)
    with pytest.raises(ValueError, match="expected traits out of family, .*, got colour"):
        evaluate(partial(hyperparameters, traits=("colour",)), plain, queries=(20,))


# ------------------------------------------------------------------------------------------------ what is said of it


def judged(*trials: Trial) -> Any:
    return judge(trials, {}, rules(), "buckler run {method} --demo digits --seed 0")


def with_beyond(trial: Trial, beyond: Tensor) -> Trial:
    evidence = {**trial.evidence, "beyond": beyond}
    return replace(trial, evidence=evidence, estimates={**trial.estimates, "beyond": stats.mean(beyond, "beyond")})


def test_what_is_told_is_found_with_what_labels_alone_leave(trial: Trial) -> None:
    clear = replace(trial, evidence=dict(trial.evidence))
    clear.evidence["right_smoothing"] = torch.ones(8, dtype=torch.bool)
    (found,) = judged(with_beyond(clear, 0.2 + 0.01 * torch.arange(8))).findings
    assert (found.id, found.state, found.severity) == ("theft/hyperparameters", "found", Severity.low)
    assert "surely beyond chance smoothing (" in found.claim
    assert "; not batch" in found.claim
    assert "Of the model itself it is guessed: smoothing " in found.claim
    assert "--models 16" in found.reproduce
    assert "--traits smoothing,batch" in found.reproduce
    assert len(found.tables["making.csv"].splitlines()) == 1 + 2 * 4
    assert "chance 50%" in found.figures[0].alt


def test_a_remedy_is_credited_only_where_it_surely_helps(trial: Trial) -> None:
    sure = {"right_smoothing": torch.ones(8, dtype=torch.bool)}
    for change, helps in ((-0.3, True), (0.0, False)):
        moved = change + 0.01 * torch.arange(8).double()
        evidence = {**trial.evidence, **sure, "change_labels": moved, "change_top": torch.zeros(8)}
        estimates = {**trial.estimates, **{n: stats.mean(evidence[n], n) for n in ("change_labels", "change_top")}}
        (found,) = judged(
            with_beyond(replace(trial, evidence=evidence, estimates=estimates), 0.2 + 0.01 * torch.arange(8))
        ).findings
        assert ("Answer with labels alone" in found.remedy) == helps
        assert bool(found.remedied) == helps
        assert ("hides nothing" in found.remedy) != helps


def test_little_is_clear_and_few_models_decide_nothing(trial: Trial) -> None:
    (clear,) = judged(with_beyond(trial, 0.01 * torch.arange(8) - 0.05)).findings
    assert (clear.state, clear.severity) == ("clear", Severity.info)
    (undecided,) = judged(with_beyond(trial, 0.4 * torch.arange(8) - 2)).findings
    assert (undecided.state, undecided.severity) == ("not measured", Severity.info)
    assert "decides nothing" in undecided.claim
    verdicts = judged(replace(trial, status="skipped", reason="give more rows"))
    assert verdicts.findings == ()
    assert verdicts.not_measured[0].why == "give more rows"
