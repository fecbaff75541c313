"""The evaluator: members are found where they were learnt by heart and nowhere else; evidence gives every number."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from membership_worlds import bright, by_heart, net, noise, subject, untaught
from torch import Tensor, nn

from buckler.kinds import Membership
from buckler.privacy._game import Game
from buckler.privacy._measure import CONTROL, null, ranked, threshold
from buckler.privacy._membership import OWN, RETRAINED
from buckler.privacy.evaluate import evaluate
from buckler.privacy.lira import lira
from buckler.privacy.loss_threshold import loss_threshold
from buckler.privacy.rmia import rmia
from buckler.stats import agree, recompute
from buckler.target import LabelOracle, Oracle, ScoreOracle
from buckler.trial import Trial, load, save


@pytest.fixture(scope="module")
def learnt() -> Trial:
    return evaluate(loss_threshold, subject(by_heart), rows=200)


@pytest.fixture(scope="module")
def shadowed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Trial, Path]:
    folder = tmp_path_factory.mktemp("kept")
    return evaluate(lira, subject(by_heart), models=8, keep=str(folder)), folder


def test_a_model_that_learnt_by_heart_gives_its_rows_away(learnt: Trial) -> None:
    assert learnt.status == "ok"
    assert learnt.estimates["auc"].low > 0.8
    assert learnt.estimates["balanced_accuracy"].low > 0.75
    assert learnt.estimates["member_accuracy"].low > 0.9
    assert learnt.estimates["accuracy"].high < 0.5
    assert learnt.params["attacked"] == OWN
    assert learnt.threat.sees == "scores"
    assert learnt.threat.changes == "nothing"
    assert learnt.cost.queries == 200


def test_its_control_gives_nobody_away(learnt: Trial) -> None:
    estimate = learnt.estimates["control_auc"]
    assert estimate.low <= 0.5 <= estimate.high
    assert next(c for c in learnt.checks if c.name == CONTROL).passed


def test_shadows_attack_a_model_of_half_of_the_rows(shadowed: tuple[Trial, Path]) -> None:
    trial, folder = shadowed
    assert trial.status == "ok"
    assert trial.estimates["auc"].low > 0.8
    assert trial.params["attacked"] == RETRAINED
    assert trial.params["models"] == 8
    assert "8 shadow models on halves" in trial.threat.within
    member = trial.evidence["ranked"][:, 1]
    assert float(member.mean()) == 0.5
    assert len(list(folder.iterdir())) == 8


def test_methods_share_shadows(shadowed: tuple[Trial, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    trial, folder = shadowed
    made: list[int] = []

    def counted(data: tuple[Tensor, Tensor]) -> object:
        made.append(len(data[1]))
        return by_heart(data)

    again = evaluate(rmia, replace(subject(by_heart), recipe=counted), models=8, keep=str(folder))  # pyright: ignore
    assert len(made) == 2  # the target and the control
    assert torch.equal(again.evidence["row"], trial.evidence["row"])
    assert torch.equal(again.evidence["ranked"][:, 1], trial.evidence["ranked"][:, 1])


def test_a_training_that_learns_nothing_gives_nobody_away() -> None:
    for method in (partial(lira, online=False), rmia):
        trial = evaluate(method, subject(untaught, 400), models=4)
        assert trial.status == "ok"
        for name, chance in (("auc", 0.5), ("found_at_one_percent", 0.01), ("found_at_one_permille", 0.001)):
            estimate = trial.estimates[name]
            assert estimate.low <= chance <= estimate.high, (name, estimate)


def test_a_difference_of_the_two_sides_is_not_taken_for_membership() -> None:
    """Test rows with wrong labels are told from training rows by a model that learnt from neither."""
    train, (x, y) = bright(300), bright(200, seed=1)
    given = subject(by_heart, train=train, test=(x, (y + 1) % 4), model=by_heart(train))
    trial = evaluate(loss_threshold, given, rows=200)
    assert trial.estimates["auc"].low > 0.9
    assert trial.status == "inconclusive"
    assert "differ in something else than membership" in trial.reason


def test_the_control_learns_from_rows_that_are_no_members() -> None:
    """Half of the training rows are left to it, however many rows were asked for."""
    seen: list[Tensor] = []

    def watched(data: tuple[Tensor, Tensor]) -> nn.Module:
        seen.append(data[0])
        return untaught(data)

    given = replace(subject(untaught, 100), recipe=watched)
    trial = evaluate(loss_threshold, given, rows=10_000)
    member = trial.evidence["ranked"][:, 1] == 1
    assert int(member.sum()) == 50
    (others,) = seen
    mine = noise(100)[0][trial.evidence["row"][member]]
    assert len(others) == 50
    assert not bool((mine[:, None] == others[None]).flatten(2).all(2).any())


def test_without_a_training_of_the_user_s_there_is_no_control_and_it_is_said() -> None:
    trial = evaluate(loss_threshold, replace(subject(by_heart), recipe=None))
    assert trial.status == "ok"
    (check,) = [c for c in trial.checks if c.name == CONTROL]
    assert not check.passed
    assert "No control was trained" in check.says
    assert "control_auc" not in trial.estimates


def test_training_is_by_the_network_where_there_is_no_recipe() -> None:
    given = replace(subject(by_heart), recipe=None, net=net)
    trial = evaluate(lira, given, models=4, training_epochs=2)
    assert trial.status == "ok"
    assert trial.params["training_epochs"] == 2


def test_test_rows_that_were_trained_on_are_left_out_and_counted() -> None:
    (x, y), (u, v) = noise(200), noise(150, seed=1)
    given = subject(by_heart, test=(torch.cat([u, x[:50]]), torch.cat([v, y[:50]])))
    trial = evaluate(loss_threshold, given)
    (check,) = [c for c in trial.checks if c.name == "no row is on both sides"]
    assert check.value == 50
    assert "50 test rows are training rows as well" in check.says
    assert int((trial.evidence["ranked"][:, 1] == 0).sum()) == 150


def test_every_number_is_recomputed_from_what_is_stored(
    learnt: Trial, shadowed: tuple[Trial, Path], tmp_path: Path
) -> None:
    for trial in (learnt, shadowed[0]):
        save(trial, tmp_path / "trial")
        loaded = load(tmp_path / "trial")
        for estimate in loaded.estimates.values():
            assert agree(estimate, recompute(estimate, loaded.evidence))


def test_the_most_exposed_rows_are_members_and_stand_where_it_says(learnt: Trial) -> None:
    at, member = learnt.evidence["exposed_at"], learnt.evidence["ranked"][:, 1]
    score = learnt.evidence["ranked"][:, 0]
    assert len(at) == 10
    assert bool((member[at] == 1).all())
    assert float(score[at].min()) >= float(score[member == 1].sort(descending=True).values[9])
    x, y = noise(200)
    rows = learnt.evidence["row"][at]
    assert torch.equal(learnt.evidence["exposed"], x[rows])
    assert torch.equal(learnt.evidence["label"][at], y[rows])
    assert bool((learnt.evidence["row"][member == 0] == -1).all())


def test_the_same_seed_gives_the_same_trial_and_another_other_rows() -> None:
    given = subject(by_heart)
    one, same, other = (evaluate(loss_threshold, given, rows=100, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(one.evidence["ranked"], same.evidence["ranked"])
    assert not torch.equal(one.evidence["row"], other.evidence["row"])


def test_an_oracle_is_enough_and_labels_are_not() -> None:
    given = subject(by_heart)
    trial = evaluate(loss_threshold, replace(given, model=Oracle(given.model, "scores")), rows=100)  # pyright: ignore
    assert trial.status == "ok"
    trial = evaluate(loss_threshold, replace(given, model=Oracle(given.model, "labels")), rows=100)  # pyright: ignore
    assert trial.status == "skipped"
    assert "needs scores, and the target reveals labels only" in trial.reason


@pytest.mark.parametrize(
    ("method", "left_out", "says"),
    [
        (loss_threshold, {"train": None}, "give the subject its `train`"),
        (lira, {"recipe": None}, "give the subject its `recipe` or its `net`"),
    ],
)
def test_what_a_subject_lacks_is_said(
    method: Callable[..., Membership], left_out: dict[str, object], says: str
) -> None:
    trial = evaluate(method, replace(subject(untaught, 60), **left_out))  # pyright: ignore
    assert trial.status == "skipped"
    assert says in trial.reason


def test_too_few_rows_are_said() -> None:
    with pytest.raises(ValueError, match="expected 40 training rows or more for shadows on halves of them, got 30"):
        evaluate(lira, subject(untaught, 30), models=4)
    with pytest.raises(ValueError, match="20 training rows and test rows or more to compare, got 5 and 10, with 5"):
        evaluate(loss_threshold, subject(untaught, 10))
    with pytest.raises(ValueError, match="even numbers of models"):
        evaluate(lira, subject(untaught, 60), models=5)


def test_scores_that_are_none_are_refused() -> None:
    def blind(oracle: ScoreOracle, x: Tensor, y: Tensor) -> Membership:
        return torch.full((len(y),), float("nan"))

    with pytest.raises(ValueError, match="expected 90 finite scores"):
        evaluate(blind, subject(untaught, 60))


def test_a_method_is_told_nothing_of_who_is_a_member() -> None:
    """A method that scores by place alone finds nobody among shuffled halves."""

    def by_place(oracle: LabelOracle, x: Tensor, y: Tensor, *, shadows: object) -> Membership:
        return torch.arange(len(y), 0, -1).double()

    trial = evaluate(by_place, subject(untaught, 400), models=2)
    estimate = trial.estimates["auc"]
    assert estimate.low <= 0.5 <= estimate.high


def _game(member: Tensor) -> Game:
    rows = len(member)
    return Game(Oracle(lambda x: x), torch.zeros(rows, 1), torch.zeros(rows).long(), member, torch.arange(rows), None)


def test_a_guess_is_by_a_threshold_of_other_rows() -> None:
    """Where scores say nothing, choosing the best threshold on the judged rows themselves would seem to know."""
    draw, right = torch.Generator().manual_seed(0), 0.0
    for _ in range(200):
        member = torch.rand(40, generator=draw) < 0.5
        judged = ranked(torch.randn(40, generator=draw), _game(member))["judged"]
        right += float((judged[:, 0] == judged[:, 1]).double().mean()) / 200
    assert right == pytest.approx(0.5, abs=0.02)


def test_the_best_threshold_is_found_among_all() -> None:
    draw = torch.Generator().manual_seed(1)
    for _ in range(20):
        score = torch.randint(0, 6, (15,), generator=draw).double()
        member = torch.rand(15, generator=draw) < 0.5
        member[:2] = torch.tensor([True, False])

        def gain(at: float, score: Tensor = score, member: Tensor = member) -> float:
            return float((score[member] > at).double().mean() - (score[~member] > at).double().mean())

        best = max(gain(at) for at in (-float("inf"), *range(6), float("inf")))
        assert gain(threshold(score, member)) == pytest.approx(best)


def test_a_control_is_called_out_when_it_knows() -> None:
    draw = torch.Generator().manual_seed(2)
    member = (torch.arange(400) % 2).double()
    scores = torch.randn(400, generator=draw, dtype=torch.double)
    assert null(torch.stack([scores, member], 1)).passed
    assert not null(torch.stack([scores + 0.7 * member, member], 1)).passed
