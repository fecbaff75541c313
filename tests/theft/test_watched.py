"""What is measured of a detector: honest clients, attackers, those who know of it, and what a reader is told."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import buckler.theft._watched as watched
from buckler import stats
from buckler.catalog import cards, find
from buckler.data import Rows
from buckler.findings import Severity, rules
from buckler.kinds import Copy, Watched
from buckler.method import describe
from buckler.nets import LinearModel
from buckler.subject import Subject
from buckler.target import Oracle, QueryBudgetExceeded, ScoreOracle
from buckler.theft._judged_watched import WORDS, of_detection
from buckler.theft._thief import ask
from buckler.theft._traffic import FRAMES, Client, Quiet, natural, repeats, video
from buckler.theft.evaluate import evaluate
from buckler.theft.prada import prada
from buckler.theft.stateful import stateful
from buckler.threat import Ball
from buckler.trial import Trial, load, save

METHODS = [card.path for card in cards("theft") if card.kind == "watch"]
SIDE, CLASSES = 6, 3
LESS: dict[str, Any] = {
    "theft/prada": {"least": 60},
    "theft/stateful": {"window": 12, "coarse": 200, "threshold": 10},
}


def images(many: int, seed: int = 0) -> Tensor:
    return torch.rand(many, 1, SIDE, SIDE, generator=torch.Generator().manual_seed(seed))


def model() -> LinearModel:
    weight = torch.randn(CLASSES, SIDE * SIDE, generator=torch.Generator().manual_seed(0))
    return LinearModel(weight, -weight.sum(1) / 2).eval()


def subject(train: int = 1200) -> Subject:
    test, more = images(600, 1), images(train, 2)
    rows = test, model()(test).argmax(1)
    return Subject("noise", model(), rows, (more, model()(more).argmax(1)), net=net, limits=(Ball("linf", 0.02),))


def net() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(SIDE * SIDE, CLASSES))


@pytest.fixture(autouse=True, scope="module")
def few() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(watched, "CLIENTS", 20)
        patch.setattr(watched, "THIEVES", 2)
        patch.setattr(watched, "ATTACKERS", 3)
        patch.setattr(watched, "ATTACKS", ("evasion/square",))
        yield


@pytest.fixture(scope="module")
def trials(few: None) -> dict[str, Trial]:
    thieves = {
        "theft/prada": partial(find("theft/jbda"), start=40, epochs=2, step=0.05),
        "theft/stateful": partial(find("theft/copycat"), epochs=1),
    }
    return {
        path: evaluate(partial(find(path), **LESS[path]), subject(), queries=(150,), attack=thieves[path])
        for path in METHODS
    }


# ------------------------------------------------------------------------------------------------ clients


def stream(many: int = 200) -> Rows:
    return images(many), torch.arange(many)


def draw(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_honest_clients_send_what_is_said() -> None:
    rows = stream()
    x, y = natural(rows, 90, draw())
    assert len(y.unique()) == 90
    assert torch.equal(x, rows[0][y])
    x, y = video(rows, 95, draw())
    assert x.shape == (95, 1, SIDE, SIDE)
    assert torch.equal(y.unique_consecutive(return_counts=True)[1], torch.tensor([FRAMES] * 9 + [5]))
    assert (x != rows[0][y]).flatten(1).any(1).all()
    assert float(x.min()) >= 0
    assert float(x.max()) <= 1
    x, y = repeats(rows, 180, draw())
    again = 180 - len(y.unique())
    assert 5 < again < 35
    assert torch.equal(x, rows[0][y])
    with pytest.raises(ValueError, match="expected 90 rows or more for a client, got 80"):
        natural(stream(80), 90, draw())


def test_a_flat_row_is_not_moved_by_a_pixel() -> None:
    x, _ = video((torch.full((20, 8), 0.5).cumsum(1) / 8, torch.arange(20)), 100, draw())
    assert x.shape == (100, 8)
    assert (x.diff(dim=1) > -0.2).all()


def test_a_client_keeps_what_it_sent_and_a_door_may_close() -> None:
    client = Client(Oracle(model(), "scores", 7))
    assert client.stream(images(1))[0].shape == (0, 1, SIDE, SIDE)
    first = client(images(5))
    assert first.shape == (5, CLASSES)
    with pytest.raises(QueryBudgetExceeded):
        client(images(3))
    x, y = client.stream(images(1))
    assert torch.equal(x, images(5))
    assert torch.equal(y, first.argmax(1))


def test_a_client_learns_from_all_that_is_answered() -> None:
    x, logits = images(5), model()(images(5))
    for reveals, heard in (("labels", logits.argmax(1)), ("scores", logits.softmax(1)), ("logits", logits.softmax(1))):
        client = Client(Oracle(model(), reveals))  # pyright: ignore[reportArgumentType]
        assert client.lesson(x)[1].shape == (0,)
        for part in x.split(2):
            client(part)
        sent, said = client.lesson(x)
        assert torch.equal(sent, x)
        torch.testing.assert_close(said, heard)


def test_one_who_knows_the_detector_sends_nothing_that_it_flags() -> None:
    """Thirty steps of a hundredth around one input: seen at once, and not at all."""
    x, spare = images(1), images(40, 5)
    steps = (x + 0.01 * images(30, 3)).clamp(0, 1)
    watch = partial(stateful, window=12, threshold=10, seed=1)
    client = Client(Oracle(model(), "labels"))
    quiet = Quiet(client, lambda sent: watch(sent).score, 8.0, spare, lambda _, moved: moved, 0)
    assert quiet(steps).shape == (30,)
    sent = client.stream(x)
    assert watch((steps, sent[1][:30])).score.max() > 15
    assert watch(sent).score.max() <= 8
    assert stateful(sent, window=12, threshold=10, seed=2).score.max() <= 14, "another key sees about as much"
    assert len(sent[0]) < 60


def test_it_sends_natural_inputs_in_between_and_stops_where_nothing_passes() -> None:
    def heard(sent: Rows) -> Tensor:
        """Of ten questions, only those that are natural pass."""
        return torch.tensor([0.0 if bool((row == spare).flatten(1).all(1).any()) else 1.0 for row in sent[0]])

    spare = images(25, 5)
    client = Client(Oracle(model(), "labels"))
    quiet = Quiet(client, heard, 0.5, spare, lambda _, moved: moved, 0)
    with pytest.raises(QueryBudgetExceeded, match="without an alarm"):
        quiet(images(3))
    assert torch.equal(client.stream(spare)[0], spare)


def test_what_is_moved_is_brought_back() -> None:
    client, x = Client(Oracle(model(), "labels")), images(4)
    seen = iter([1.0, 0.0])

    def heard(sent: Rows) -> Tensor:
        return torch.full((len(sent[0]),), next(seen))

    Quiet(client, heard, 0.5, images(10), lambda wanted, moved: wanted + 0.1 * (moved - wanted), 0)(x)
    sent, _ = client.stream(x)
    assert 0 < float((sent - x).abs().max()) <= 0.1


# ------------------------------------------------------------------------------------------------ trials


@pytest.mark.parametrize("path", METHODS)
def test_every_detector_can_be_measured(path: str, trials: dict[str, Trial], tmp_path: Path) -> None:
    trial = trials[path]
    assert (trial.status, trial.kind) == ("ok", "watch")
    for name in WORDS:
        assert trial.evidence[f"flagged_{name}"].shape == (20,)
    assert trial.estimates["flagged_natural"].value <= 0.15
    save(trial, tmp_path / "trial")
    assert load(tmp_path / "trial").estimates.keys() == trial.estimates.keys()


def test_who_is_flagged_is_stopped_before_that_question_and_one_who_knows_the_detector_guesses_its_secret(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Question 24 bears a mark that the detector's own seed sees, and no other one does."""
    mark, at, many = 0.125, 24, 60
    seeds, budgets, lessons, real = set[int](), list[int | None](), list[tuple[int, ...]](), watched.taught

    def spy(queries: Rows, *, seed: int = 0) -> Watched:
        seeds.add(seed)
        score = torch.where(queries[0][:, 0, 0, 0] == mark, 1.0, 0.5) * (seed == 5)
        return Watched(score > 0.9, score)

    def thief(oracle: ScoreOracle, pool: Tensor) -> Copy:
        budgets.append(oracle.budget)
        x = pool[:many].clone()
        x[at - 1, 0, 0, 0] = mark
        ask(oracle, x)
        return net().eval()

    def taught(copy: nn.Module, lesson: Rows, **how: Any) -> nn.Module:
        lessons.append(tuple(lesson[1].shape))
        return real(copy, lesson, **how)

    monkeypatch.setattr(watched, "taught", taught)
    trial = evaluate(spy, subject(), queries=(many,), attack=thief, seed=5)
    name = describe(thief).path
    assert trial.evidence[f"first_{name}"].tolist() == [at, at]
    assert trial.evidence[f"first_{name}_adaptive"].tolist() == [at, at]
    assert trial.evidence[f"own_{name}"].all()
    assert trial.evidence["first_natural"].isinf().all()
    assert not trial.evidence["flagged_natural"].any()
    assert seeds == {5, 6}
    assert budgets == [many, many, at - 1, many, many]
    assert lessons == [(at - 1, CLASSES)]


def test_everyone_sends_as_many_questions_and_nobody_all_that_there_is() -> None:
    """Of 400 rows in two halves a client sends 50, and not 150: not two send the same."""
    streams: list[Tensor] = []

    def spy(queries: Rows) -> Watched:
        streams.append(queries[0])
        return Watched(queries[1] < 0, torch.full((len(queries[0]),), 0.5))

    trial = evaluate(spy, subject(400), queries=(150,), attack=partial(find("theft/copycat"), epochs=1))
    assert trial.status == "ok"
    assert {len(sent) for sent in streams[: 5 * 20 + 2]} == {50}
    assert max(len(sent) for sent in streams) == 50
    assert trial.evidence["spent_copycat"].tolist() == [50, 50]
    calm = [{row.numpy().tobytes() for row in sent} for sent in streams[:20]]
    assert max(len(one & other) for one in calm for other in calm if one is not other) < 35
    assert (int(trial.evidence["asked"]), int(trial.evidence["apart"])) == (50, 4)
    assert trial.threat.within == "50 queries"
    (found,) = of_detection([trial], rules(), "buckler run {method}").findings
    assert "within 50 questions" in found.claim


def test_clients_of_a_small_pool_are_left_out() -> None:
    one = subject()
    small = replace(one, test=(one.test[0][:200], one.test[1][:200]))  # pyright: ignore[reportIndexIssue]
    trial = evaluate(partial(prada, least=40), small, queries=(60,), attack=partial(find("theft/copycat"), epochs=1))
    assert trial.status == "ok"
    assert "flagged_natural" in trial.evidence
    assert "flagged_pool" not in trial.evidence


def test_prada_sees_small_steps_and_not_those_who_know_it(trials: dict[str, Trial]) -> None:
    e = trials["theft/prada"].estimates
    assert e["flagged_jbda"].value == 1
    assert 60 < e["first_jbda"].value <= 150
    assert e["flagged_jbda_adaptive"].value == 0
    assert e["fidelity_jbda_adaptive"].value > e["fidelity_jbda"].value - 0.15


def test_blacklight_sees_small_changes_of_the_honest_too(trials: dict[str, Trial]) -> None:
    e = trials["theft/stateful"].estimates
    assert e["flagged_video"].value == 1
    assert e["flagged_repeats"].value == 1
    assert e["first_video"].value < 10
    assert e["flagged_square"].value > 0.5
    assert e["flagged_square_adaptive"].value == 0
    assert e["won_square_stopped"].value <= e["won_square"].value


def test_the_alarm_is_put_by_rows_that_nobody_else_has() -> None:
    """A detector that is told which rows it is shown, by what is in them."""
    rows: list[set[bytes]] = []

    def spy(queries: Rows) -> Watched:
        rows.append({row.numpy().tobytes() for row in queries[0]})
        return Watched(torch.zeros(len(queries[0]), dtype=torch.bool), torch.ones(len(queries[0])))

    trial = evaluate(spy, subject(), queries=(60,), attack=partial(find("theft/copycat"), epochs=1))
    assert trial.status == "ok"
    calm, honest, pool = (set[bytes]().union(*part) for part in (rows[:20], rows[20:40], rows[80:100]))
    assert len(calm) > 100
    assert not calm & honest
    assert not calm & pool
    assert not calm & set[bytes]().union(*rows[40:])
    assert "flagged_copycat_adaptive" not in trial.evidence, "who is not flagged has nothing to evade"
    assert not trial.estimates["flagged_natural"].value


def test_a_detector_that_does_not_answer_every_question_is_refused() -> None:
    def lazy(queries: Rows) -> Watched:
        return Watched(torch.zeros(1, dtype=torch.bool), torch.zeros(1))

    with pytest.raises(ValueError, match="flags and scores of 60 questions"):
        evaluate(lazy, subject(), queries=(60,))


def test_an_alarm_that_does_not_carry_over_is_a_doubt() -> None:
    rare, often = (stats.share(torch.arange(50) < many, "flagged_pool") for many in (1, 20))
    assert watched._calm(rare, rare).passed
    assert watched._calm(rare, None).passed
    assert not watched._calm(rare, often).passed
    assert "give more of them" in watched._calm(often, rare).says


def test_it_is_a_doubt_as_rarely_as_the_highest_of_some_scores_is_exceeded() -> None:
    """Scores of clients who are all alike: five times in a hundred at the most, and not never."""
    for groups in (1, 2):
        doubts = 0
        for run in range(1000):
            scores = torch.rand(1 + groups, 20, generator=draw(run))
            kinds = [stats.share(others > scores[0].max(), "flagged") for others in scores[1:]]
            doubts += not watched._calm(kinds[0], kinds[1] if groups == 2 else None).passed
        assert 10 < doubts < 60


@pytest.mark.parametrize(("hits", "alone", "with_pool"), [(4, True, True), (5, False, True), (6, False, False)])
def test_of_two_kinds_either_may_be_unlucky(
    hits: int, alone: bool, with_pool: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That five of a hundred exceed the highest of a hundred has a chance of three in a hundred; six, of half that."""
    monkeypatch.setattr(watched, "CLIENTS", 100)
    flags = stats.share(torch.arange(100) < hits, "flagged")
    assert watched._calm(flags, None).passed == alone
    assert watched._calm(flags, flags).passed == with_pool


def test_few_flags_are_sure_only_of_clients_who_share_no_rows(trials: dict[str, Trial]) -> None:
    trial = trials["theft/prada"]
    flags = stats.share(torch.arange(100) < 15, "flagged_natural")
    for apart, said in ((100, True), (4, False)):
        changed = {**trial.estimates, "flagged_natural": flags}
        evidence = {**trial.evidence, "apart": torch.tensor([apart])}
        given = replace(trial, estimates=changed, evidence=evidence)
        (found,) = of_detection([given], rules(), "").findings
        assert ("It would turn away who sends different inputs" in found.claim) == said


def test_what_cannot_be_measured_is_said() -> None:
    one = subject()
    wide = partial(stateful, window=50, threshold=0)
    for method, given, queries, says in (
        (prada, one, (30,), "40 queries or more"),
        (prada, subject(300), (150,), "give 320 of them or more"),
        (stateful, one, (60,), "theft/stateful: expected inputs with more than 25 windows of 20 pixels, got 17"),
        (wide, one, (60,), "got 0 in 36 pixels"),
    ):
        trial = evaluate(method, given, queries=queries)
        assert trial.status == "skipped"
        assert says in trial.reason


def test_a_model_that_tells_labels_is_watched_by_those_who_need_no_more() -> None:
    one = replace(subject(), model=Oracle(model(), "labels"))
    trial = evaluate(partial(prada, least=40), one, queries=(60,))
    assert trial.status == "ok"
    assert "flagged_jbda" in trial.evidence
    assert not {"flagged_square", "flagged_data_free"} & trial.evidence.keys()


def test_a_reader_is_told_of_false_alarms_and_of_those_who_pass(trials: dict[str, Trial]) -> None:
    findings = {f.id: f for f in of_detection(list(trials.values()), rules(), "buckler run {method}").findings}
    seen = findings["theft/detection/stateful"]
    assert (seen.state, seen.severity) == ("found", Severity.info)
    assert "It would turn away who sends scenes that hardly move, or one input in ten twice." in seen.claim
    told = findings["theft/detection/prada"]
    assert "It catches jbda, in the median at question" in told.claim
    assert "who knows the detector is flagged in 0 of 2 and agrees on" in told.claim
    assert "flagged: jbda that knows the detector" in told.tables["detection-prada.csv"]
    assert "honest, different inputs" in told.figures[0].svg
    skipped = replace(trials["theft/prada"], status="skipped", reason="give it more")
    assert of_detection([skipped], rules(), "").not_measured[0].why == "give it more"


def test_a_detector_to_which_no_honest_client_is_suspicious_is_held_to_its_own_threshold() -> None:
    def spy(queries: Rows) -> Watched:
        score = torch.where(queries[0][:, 0, 0, 0] == 0.12345, 1.0, 0.0).cumsum(0)
        return Watched(score > 2, score)

    def thief(oracle: ScoreOracle, pool: Tensor) -> Copy:
        x = pool[:60].clone()
        x[[9, 19, 29, 39], 0, 0, 0] = 0.12345
        ask(oracle, x)
        return net().eval()

    trial = evaluate(spy, subject(), queries=(60,), attack=thief)
    name = describe(thief).path
    assert trial.status == "ok"
    assert trial.evidence[f"first_{name}"].tolist() == [30, 30]  # not the tenth, with which its score begins
    assert not trial.evidence["flagged_natural"].any()
    (found,) = of_detection([trial], rules(), "buckler run {method}").findings
    assert "at its own threshold, as no honest client is suspicious to it" in found.claim
