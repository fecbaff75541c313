"""B4B: what a share of buckets is, what an account is answered, and whom the alarm meets."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from itertools import combinations
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from stealing_worlds import closeness, deep, random_encoder, rows
from torch import Tensor, nn

from buckler.data import Rows
from buckler.embedding import embedded
from buckler.encoders import _judged_stealing, _pretrained, _stolen, _watched
from buckler.encoders._accounts import FRAMES, FULL, LARGE, MOST, Account, noise_at, often, related, turned
from buckler.encoders._copying import ask
from buckler.encoders._scene import Scene
from buckler.encoders._setting import Setting
from buckler.encoders.b4b import b4b
from buckler.encoders.evaluate import evaluate
from buckler.encoders.judge import judge
from buckler.encoders.stolen_encoder import stolen_encoder
from buckler.findings import rules
from buckler.kinds import Watched
from buckler.method import describe
from buckler.stats import recompute
from buckler.subject import Subject
from buckler.target import Oracle
from buckler.trial import Trial


def features(many: int, wide: int = 6, seed: int = 0) -> Tensor:
    return torch.randn(many, wide, generator=torch.Generator().manual_seed(seed))


def test_the_share_is_what_a_set_of_buckets_says() -> None:
    """By one hash of two bits, features that lie in the four quarters of a plane: as many buckets as there are."""
    x, known = features(40), features(50, seed=1)
    look = b4b((x, x), known=known, bits=3, hashes=1, seed=4)
    steps = (look.score * 8).tolist()
    assert steps[0] == 1
    assert all(after - before in (0, 1) for before, after in zip(steps, steps[1:], strict=False))
    doubled = torch.stack([x, x], 1).flatten(0, 1)
    again = b4b((doubled, doubled), known=known, bits=3, hashes=1, seed=4).score
    assert torch.equal(again[0::2], look.score), "a feature that was there covers nothing new"
    assert torch.equal(again[1::2], look.score)
    back = b4b((x.flip(0), x.flip(0)), known=known, bits=3, hashes=1, seed=4)
    assert float(back.score[-1]) == float(look.score[-1])
    every = features(4000, seed=2)
    assert float(b4b((every, every), known=known, bits=3, hashes=4).score[-1]) == 1


def test_buckets_lie_around_the_mean_of_what_is_known_and_the_scale_says_nothing() -> None:
    x = features(60)
    usual = b4b((x, x), known=x, bits=5).score
    assert torch.equal(b4b((x, 3 * x + 100), known=3 * x + 100, bits=5).score, usual)
    assert torch.equal(b4b((x, x.double()), known=x.half(), bits=5).score[-1:] > 0.4, usual[-1:] > 0.4)
    beside = b4b((x, x + 100), known=x, bits=5).score
    assert float(beside[-1]) == 1 / 32, "all on one side of every plane"


def test_the_flag_is_a_threshold_of_the_score() -> None:
    x = features(300)
    look = b4b((x, x), known=x, threshold=0.5)
    assert torch.equal(look.flagged, look.score > 0.5)
    assert bool(look.flagged[-1])
    assert not bool(look.flagged[0])
    assert b4b((x[:0], x[:0]), known=x).score.shape == (0,)


@pytest.mark.parametrize("how", [{"bits": 0}, {"hashes": 0}, {"threshold": 2}])
def test_what_makes_no_sense_is_refused(how: dict[str, Any]) -> None:
    x = features(5)
    with pytest.raises(ValueError, match="expected a threshold"):
        b4b((x, x), known=x, **how)
    with pytest.raises(ValueError, match=r"features \(N, D\) and known ones"):
        b4b((x, x), known=torch.zeros(3, 5))


def counting(queries: Rows) -> Watched:
    score = torch.arange(1, len(queries[0]) + 1).double()
    return Watched(score > 50, score)


def test_noise_grows_with_the_score_of_all_that_an_account_asked() -> None:
    assert float(noise_at(torch.tensor([FULL * 10.0]), 10)) == pytest.approx(LARGE, rel=1e-5)
    assert float(noise_at(torch.tensor([10.0]), 10)) < 0.1
    assert float(noise_at(torch.tensor([9.0]), float("inf"))) == 0
    assert float(noise_at(torch.tensor([1e3]), 10)) == pytest.approx(
        float(noise_at(torch.tensor([MOST * FULL * 10]), 10))
    )
    model, x = random_encoder(0, 200).requires_grad_(False), rows(40)[0]
    account = Account(model, counting, alarm=20)
    noise = torch.cat([account(part) for part in x.split(7)]) - model(x)
    size = (noise.square().mean(1) / model(x).square().mean(1)).sqrt()
    wanted = noise_at(torch.arange(1, 41).double(), 20).float()
    assert torch.allclose(size[15:], wanted[15:], rtol=0.25)
    assert float(size[0]) < 1e-4
    drawn = nn.functional.normalize(noise, dim=1)
    assert float((drawn[21:28] * drawn[28:35]).sum(1).abs().max()) < 0.5, "new noise for every question"
    assert torch.equal(account.stream[0], x)
    assert torch.allclose(account.stream[1], model(x), atol=1e-5), "as they are"


def test_a_turn_keeps_what_features_say_of_each_other() -> None:
    x = features(20)
    moved = turned(x, 3)
    assert torch.allclose(moved @ moved.T, x @ x.T, atol=1e-4)
    assert not torch.allclose(moved, turned(x, 4), atol=0.1)
    assert turned(x, None) is x


def test_a_thief_with_many_accounts_learns_from_turned_features() -> None:
    """Who compares images does; who joins the answers as they are does not."""
    model, (x, _) = random_encoder(0).requires_grad_(False), rows(120)
    answers = [turned(model(part), key) for key, part in enumerate(x.split(30))]

    def likenesses(copy: nn.Module) -> float:
        with torch.no_grad():
            a, b = (nn.functional.normalize(one(rows(100, 77)[0]), dim=1) for one in (copy, model))
        return float((a @ a.T - b @ b.T).abs().mean())

    copy = related(deep, x, answers, epochs=30, seed=0)
    joined = torch.cat(answers)

    class Joined(nn.Module):
        def forward(self, asked: Tensor) -> Tensor:
            return joined[(asked.flatten(1)[:, None] - x.flatten(1)).abs().sum(2).argmin(1)]

    naive = stolen_encoder(Oracle(Joined(), "features"), x, net=deep, epochs=30)
    assert likenesses(copy) < 0.6 * likenesses(naive)
    assert closeness(copy, model) < 0.9, "in a rotation of its own"


def test_who_sends_an_image_often_sends_it_in_other_light() -> None:
    x = rows(4)[0]
    frames = often(x, torch.Generator().manual_seed(0))
    assert frames.shape == (4 * FRAMES, 1, 4, 4)
    assert float((frames[:FRAMES] - x[:1]).abs().mean()) < 0.1
    assert len(frames.flatten(1).unique(dim=0)) == 4 * FRAMES


# ------------------------------------------------------------------------------------------------ the evaluation


@pytest.fixture(scope="module", autouse=True)
def quickly() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_pretrained, "DRAWS", 1)
        for name, value in {"CLIENTS": 30, "THIEVES": 6, "USERS": 2, "EPOCHS": 10}.items():
            patch.setattr(_watched, name, value)
        yield


def eight(many: int, seed: int) -> Rows:
    """Images `(many, 1, 4, 4)` close around eight patterns, so that two of them are a small part of all."""
    draw = torch.Generator().manual_seed(seed)
    patterns = torch.rand(8, 1, 4, 4, generator=torch.Generator().manual_seed(99))
    y = torch.randint(8, (many,), generator=draw)
    return (patterns[y] + 0.05 * torch.randn(many, 1, 4, 4, generator=draw)).clamp(0, 1), y


@pytest.fixture(scope="module")
def subject() -> Subject:
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 8)).eval()
    return Subject("blobs", model, eight(320, 2), train=eight(400, 3), body=deep)


@pytest.fixture(scope="module")
def keep(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tmp_path_factory.mktemp("watched"))


def tried(method: Any, subject: Subject, keep: str, rows: int = 320, **how: Any) -> Trial:
    return evaluate(method, subject, rows=rows, encoder_steps=40, queries=(190,), keep=keep, **how)


@pytest.fixture(scope="module")
def trial(subject: Subject, keep: str) -> Trial:
    return tried(partial(b4b, bits=3), subject, keep)


def test_a_thief_covers_more_than_who_has_a_task(trial: Trial) -> None:
    e = trial.estimates
    assert trial.status == "ok"
    assert e["apart_task"].value > 0.9
    assert e["apart_whole"].low < 0.5 < e["apart_whole"].high
    assert e["flagged_thief"].value > 0.5
    assert e["flagged_task"].value < 0.1
    assert trial.evidence["spent"].tolist()[:2] == [190, 190]
    for estimate in e.values():
        assert recompute(estimate, trial.evidence) == estimate


def test_a_finding_says_whom_the_alarm_meets(trial: Trial) -> None:
    (found,) = judge([trial], {}, rules(), "buckler run {method}").findings
    assert (found.id, str(found.severity)) == ("encoders/stealing/detection/b4b", "info")
    assert f"with all in {trial.estimates['apart_whole'].value:.0%} (chance: 50%)" in found.claim
    asked, accounts = (int(trial.evidence[name][-1]) for name in ("asked", "accounts"))
    assert f"After {asked} questions" in found.claim
    caught = int(trial.evidence["flagged_account"].sum())
    assert f"from {accounts} accounts, {caught} of which raise" in found.claim
    assert caught < accounts
    assert len(found.claim) < 1000
    assert found.reproduce.startswith("buckler run encoders/b4b")


def blind(queries: Rows, *, seed: int = 0) -> Watched:
    """It sees nothing, and flags everyone."""
    del seed
    none = torch.zeros(len(queries[0]), dtype=torch.double)
    return Watched(none == 0, none)


def test_a_detector_that_sees_nothing_changes_nothing(subject: Subject, keep: str) -> None:
    trial = tried(blind, subject, keep)
    e = trial.estimates
    assert e["flagged_thief"].value == e["flagged_task"].value == 0
    assert e["own_thief"].value == e["own_task"].value == 1, "by its own threshold"
    assert e["apart_task"].value == 0.5
    assert not trial.evidence["change_stopped"].any(), "it is never stopped"
    assert trial.evidence["accounts"].tolist() == [1]
    assert e["change_user_task"].high >= 0


def test_too_few_rows_for_an_account_are_said(subject: Subject, keep: str) -> None:
    trial = tried(b4b, subject, keep, rows=40)
    assert trial.status == "skipped"
    assert "2 rarest classes have" in trial.reason
    few = replace(subject, test=(subject.test[0], subject.test[1] % 3))  # pyright: ignore[reportIndexIssue]
    assert "and there are 3" in tried(b4b, few, keep).reason


def test_thieves_are_set_beside_accounts_with_the_same_rows_whatever_others_are_and_labels_may_have_gaps(
    subject: Subject, keep: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Test rows of any kind, and not around eight patterns, cover far more than those that thieves have."""
    names = torch.tensor([0, 1, 3, 4, 6, 7, 8, 11])
    known, (x, y) = eight(400, 3), eight(320, 2)
    wild = torch.rand(x.shape, generator=torch.Generator().manual_seed(0)), names[y]
    asked = list[object]()

    def robbed(setting: Any, thief: Any, *others: Any) -> Any:
        asked.append(describe(thief).params["epochs"])
        return _stolen.robbed(setting, thief, *others)

    monkeypatch.setattr(_watched, "robbed", robbed)
    thief = partial(stolen_encoder, epochs=3.0)
    trial = tried(
        partial(b4b, bits=3), replace(subject, train=(known[0], names[known[1]]), test=wild), keep, attack=thief
    )
    assert trial.status == "ok"
    low, high = trial.estimates["apart_whole"].low, trial.estimates["apart_whole"].high
    assert low < 0.5 < high
    assert asked == [0.01] * 6 + [3.0] * 4, "of thieves who are only looked at nobody waits for a copy"


def test_thieves_meet_what_is_done_with_their_scores(
    subject: Subject, keep: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each is answered what the encoder says, or that and noise, turned; so often, and about so many classes."""
    met, pooled = list[tuple[nn.Module, Tensor, Tensor, int | None, int]](), list[tuple[Tensor, list[Tensor]]]()

    def robbed(setting: Setting, thief: object, oracle: Oracle, seen: Scene) -> tuple[nn.Module, float]:
        x = ask(oracle, seen.spare[0], setting.seed)
        met.append((cast(nn.Module, seen.encoder), x, oracle(x), oracle.budget, len(seen.spare[1].unique())))
        return deep(), 0.0

    def related(net: object, x: Tensor, answers: list[Tensor], **_: object) -> nn.Module:
        pooled.append((x, answers))
        return deep()

    monkeypatch.setattr(_watched, "robbed", robbed)
    monkeypatch.setattr(_watched, "related", related)
    first = tried(partial(b4b, bits=3), subject, keep).evidence["first_thief"]
    plain, naive, stopped, narrow = ((answers, embedded(one, x)) for one, x, answers, *_ in met[len(first) :])
    for answers, features in (plain, stopped):
        assert torch.allclose(answers, features, atol=1e-5)
    assert (len(plain[0]), len(stopped[0])) == (190, int(first[0]) - 1)
    noise = (naive[0] - turned(naive[1], 0)).norm(dim=1) / naive[1].norm(dim=1)
    assert float(noise[:5].max()) < 0.01 < 0.05 < float(noise[-20:].mean())
    assert [thief[-1] for thief in met] == [8] * (len(met) - 1) + [2]
    assert len(narrow[0]) < 190
    ((x, parts),) = pooled
    assert (len(x), {len(part) for part in parts[:-1]}) == (190, {int(first.min()) - 1})
    for key, (part, features) in enumerate(zip(parts, embedded(met[0][0], x).split(len(parts[0])), strict=True)):
        assert torch.allclose(part[:2], turned(features, key)[:2], rtol=0.01, atol=0.01)


def test_accounts_have_keys_of_their_own_and_others_with_another_seed() -> None:
    model, x = deep().eval(), eight(6, 0)[0]

    def answered(seed: int, key: int) -> Tensor:
        setting = cast(Setting, SimpleNamespace(seed=seed))
        calm = partial(b4b, known=embedded(model, eight(50, 1)[0]), bits=3)
        guard = _watched._Guard(calm, 1.0, setting, cast(Scene, None), model, (), 1, 1)
        with torch.no_grad():
            return guard.account(guarded=True, key=key)(x)

    kinds = [answered(seed, key) for seed in (0, 1) for key in (0, 1)]
    assert torch.equal(kinds[3], answered(1, 1))
    for one, other in combinations(kinds, 2):
        assert not torch.allclose(one, other, rtol=0.1, atol=0.1)


def test_where_the_alarm_meets_all_of_them_users_lose_their_features_and_that_is_said(
    subject: Subject, keep: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_watched, "MARGIN", -1.0)
    monkeypatch.setattr(_watched, "USERS", 5)
    trial = tried(partial(b4b, bits=3), subject, keep)
    assert trial.estimates["flagged_often"].value == 1
    assert [check.passed for check in trial.checks if check.name == _watched.CALM] == [False]
    for who in ("user_task", "user_whole"):
        assert trial.estimates[f"change_{who}"].high < 0, who
        assert trial.estimates[f"change_{who}"].n == 5, "users of the same rows, and of other classes"
    assert trial.evidence["spent"].tolist()[2] == 2, "stopped at once"


def test_a_detector_costs_what_it_costs_those_who_pay_the_most(trial: Trial) -> None:
    task, whole = (trial.estimates[f"change_user_{kind}"] for kind in ("task", "whole"))
    assert _judged_stealing._price(trial).value == min(task.value, whole.value)
    left = [trial.estimates[f"ratio_{thief}_few"].value for thief in _watched.EXPECTING]
    assert _judged_stealing._left(trial)[0].value == max(left) > min(left), "the best of its thieves"
    dear = replace(
        trial, estimates={**trial.estimates, "change_user_whole": replace(whole, value=-0.8, low=-0.9, high=-0.7)}
    )
    assert _judged_stealing._harms(dear)
    assert "-80.0 points where they have a use for all classes" in _judged_stealing._did([dear])


@pytest.mark.parametrize("last", [0.0, 1.0])
def test_the_alarm_is_above_what_honest_accounts_reach_wherever_they_reach_it_and_whatever_the_scale(
    subject: Subject, keep: str, last: float
) -> None:
    """Scores below 0, that of the last question the lowest or like the others."""

    def below(queries: Rows, *, known: Tensor, seed: int = 0) -> Watched:
        score = b4b(queries, known=known, bits=3, seed=seed).score - 2
        score[-1] -= 1 - last
        return Watched(score > -1, score)

    e = tried(below, subject, keep).estimates
    assert e["flagged_often"].value < 0.1
    assert e["flagged_task"].value < 0.1
